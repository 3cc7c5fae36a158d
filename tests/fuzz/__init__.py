"""Properties of everything that reads what comes from outside, tried with inputs that nobody would write."""
