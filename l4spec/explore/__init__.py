"""`l4spec explore`: a local page with the planner in it. Needs the extra `explore`; nothing here writes to disk."""
