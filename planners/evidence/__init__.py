"""Published measurements, their replay, and the fits made on them: `python -m planners.evidence`."""
