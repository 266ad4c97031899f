"""Measurement of real runs: FLOPs, memory, expert load and time. Imports no planner."""
