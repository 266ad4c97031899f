"""How wrong predictions of our module's time were where it was tried: on models that nothing was calibrated on."""

from planners.latency.efficiency import FitError

SOURCE = "benchmarks/predict_time.py, 2026-11-25; every point in docs/calibrate.csv"
PREFILL = FitError(metric="ttft", median=0.045, p90=0.156, num_rows=31, num_sources=0)
DECODE = FitError(metric="tpot", median=0.086, p90=0.246, num_rows=31, num_sources=0)
ERRORS = (PREFILL, DECODE)
"""On the machine of the document. Another machine, or a busy one, is as wrong as it is."""
