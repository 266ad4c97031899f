"""Error of predicted times of our module, on models that were not used in the calibration."""

from planners.latency_types import LatencyError

SOURCE = "benchmarks/predict_time.py, 2026-11-25; every point in docs/calibrate.csv"
PREFILL = LatencyError(metric="ttft", median=0.048, p90=0.176, num_rows=40, num_sources=0)
DECODE = LatencyError(metric="tpot", median=0.085, p90=0.240, num_rows=40, num_sources=0)
ERRORS = (PREFILL, DECODE)
"""On the machine of the document. Another machine, or a busy one, is as wrong as it is."""
