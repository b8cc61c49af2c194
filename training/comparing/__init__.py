"""Runs, evaluations and checkpoints beside each other: what differs, figures, the difference on the same things."""
