"""Calibration of this machine: times of the operations that our modules run, by size. Imports no planner."""
