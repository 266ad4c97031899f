"""Shared code of recurrent kinds: sequences as rows, short convolutions, chunked scans, declarations."""
