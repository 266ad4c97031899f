"""What does a training cost? Phase by phase of a recipe, each planned as `plan --mode train` with its settings."""
