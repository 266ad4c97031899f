"""A recipe that runs: which model and sizes, phase after phase, with checkpoints, metrics and a table at the end."""
