"""Stages 1 to 3: from YAML to a resolved model."""
