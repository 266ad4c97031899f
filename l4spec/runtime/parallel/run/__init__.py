"""`l4spec run`: ranks that train or generate together, and end together when one of them fails."""
