"""Names of the step folders of checkpoints. Imports no torch."""

STEP = "step-"
"""Prefix of a checkpoint folder's name, before the number of steps."""
