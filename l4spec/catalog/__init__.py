"""Catalogues of YAML files: what an entry is made of, and how a name or a path finds one."""
