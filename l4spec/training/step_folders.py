"""Names of the step folders of checkpoints. Imports no torch."""

STEP = "step-"
"""How the name of a checkpoint's folder begins, before the number of steps."""
