"""Tools of mkdocs for the site of docs/: a hook, the gallery, and a shim for search without a server."""
