"""A workshop: seats with codes of their own, checkpoints, and a board that shows who is stuck and why."""
