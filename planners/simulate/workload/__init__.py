"""Workloads as streams of requests: drawn from distributions, or read from traces."""
