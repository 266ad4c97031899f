"""Which cluster trains a model by a deadline, and what it costs."""
