"""How the folders of a run's checkpoints are named. Knows no torch."""

STEP = "step-"
"""How the name of a checkpoint's folder begins, before the number of steps."""
