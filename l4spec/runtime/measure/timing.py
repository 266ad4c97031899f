"""The clock of measured runs."""

import time

import torch

NUM_TIMED = 3
"""Runs whose median is reported, after one warm-up run that is not timed."""


def now(device: torch.device) -> float:
    """Seconds of a monotonic clock, read once the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
