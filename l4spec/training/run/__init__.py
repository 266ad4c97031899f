"""`l4spec run`: a layout that trains on synthetic text, or generates."""
