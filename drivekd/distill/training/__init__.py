"""A run: student, steps, checkpoints, resuming, many processes."""
