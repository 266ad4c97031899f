"""What recurrent kinds share: sequences as rows, short convolutions, scans in chunks, and what all of it costs."""
