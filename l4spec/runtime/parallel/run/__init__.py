"""`l4spec run`: ranks that train or say something together, and end together when one of them fails."""
