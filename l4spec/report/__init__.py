"""Stages 7 and 8: claims held against the plan, and everything that is shown to people."""
