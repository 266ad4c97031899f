"""Cost of a training recipe: each phase planned as `plan --mode train` with its own settings."""
