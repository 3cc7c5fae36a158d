"""The machinery behind server.py and tunnel.py: one noun a file."""

__version__ = "0.1.0"
