"""The told error of predicted times is that of the points in docs/calibrate.csv."""

import csv
from pathlib import Path
from statistics import median

import pytest

from planners.evidence.spread import percentile
from planners.latency_types import LatencyError
from planners.module.error import DECODE, PREFILL

POINTS = Path(__file__).parents[2] / "docs" / "calibrate.csv"


@pytest.mark.parametrize(("phase", "fit_error"), [("prefill", PREFILL), ("decode", DECODE)])
def test_the_printed_error_is_that_of_the_points(phase: str, fit_error: LatencyError) -> None:
    lines = [line for line in POINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines) if row["phase"] == phase]
    errors = [abs(float(row["predicted_ms"]) / float(row["measured_ms"]) - 1) for row in rows]
    assert len(errors) == fit_error.num_rows >= 30
    assert median(errors) == pytest.approx(fit_error.median, abs=5e-4)
    assert percentile(errors, 90) == pytest.approx(fit_error.p90, abs=5e-4)
