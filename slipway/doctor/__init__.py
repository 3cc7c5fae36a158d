"""The doctor: the same probes at every hop, what each found, why, and what to do about it."""
