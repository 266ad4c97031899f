"""From YAML to a resolved model: read (`document`), validate (`parse`, `model`), fill in defaults (`resolve`)."""
