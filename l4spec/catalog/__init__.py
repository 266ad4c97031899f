"""Catalogues of YAML files: the schema of entries, and lookup by name or path."""
