"""Measuring what a model does: FLOPs, memory, expert load and time of real runs. Knows nothing of the plan."""
