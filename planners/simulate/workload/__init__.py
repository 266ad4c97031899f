"""What arrives: drawn from distributions, or read from traces, always as a stream."""
