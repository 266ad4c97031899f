"""Fitting the efficiency factors of the latency planner: `python -m planners.fitting`."""
