"""Stages 7 and 8: claims compared with the plan, and everything that is shown to people."""
