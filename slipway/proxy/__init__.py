"""Servers that are not ours: loading one, and carrying requests to processes and URLs."""
