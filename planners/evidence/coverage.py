"""Coverage of the printed errors: the share of rows whose own error stays within the error that their plan prints.

Rows marked `calibrate` are judged by factors fitted without their series, and their printed error comes from the rows
of other series; rows marked `test` played no part in either.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from planners.catalog.loader import load
from planners.evidence.deployments import serving_case
from planners.evidence.fit_training import FAMILIES
from planners.evidence.replay import Prediction, step_model
from planners.evidence.training_replay import train_case
from planners.latency_types import Conditions, JudgedRow, LatencyError
from planners.timing.efficiency import ServingEfficiency, TrainingEfficiency
from planners.timing.likeness import error_like, serving_conditions, training_conditions

ENGINES = ("vllm", "tensorrt-llm", "sglang")
_METRICS = {"tpot_mean": "tpot", "itl_mean": "tpot", "ttft_mean": "ttft"}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of `num_rows` rows of a metric the shares within the printed median and upper error, and their median sizes."""

    factors: str
    metric: str
    split: str
    num_rows: int
    within_median: float
    within_upper: float
    median: float
    upper: float


def coverages(predictions: Iterable[Prediction]) -> tuple[Coverage, ...]:
    """Of every file of factors and metric, on rows left out of the fit and on test rows."""
    pairs: dict[tuple[str, str, str], list[tuple[float, LatencyError]]] = defaultdict(list)
    judged = _judged()
    for name, rows in judged.items():
        for row in rows:
            others = [other for other in rows if other.series != row.series]
            printed = error_like(others, row.metric, row.conditions)
            if printed is not None:
                pairs[name, row.metric, "left out"].append((abs(row.error), printed))
    for prediction in predictions:
        measured = _measured(prediction)
        if prediction.row.split == "test" and prediction.error is not None and measured is not None:
            name, metric, conditions = measured
            printed = error_like(judged.get(name, ()), metric, conditions)
            if printed is not None:
                pairs[name, metric, "test"].append((abs(prediction.error), printed))
    return tuple(_coverage(key, members) for key, members in sorted(pairs.items()))


def _judged() -> dict[str, tuple[JudgedRow, ...]]:
    """The judged rows of every engine, and those of training, which its families share."""
    rows = {name: load("efficiency", ServingEfficiency, name).judged for name in ENGINES}
    rows["training"] = load("efficiency", TrainingEfficiency, f"train-{next(iter(FAMILIES))}").judged
    return rows


def _measured(prediction: Prediction) -> tuple[str, str, Conditions] | None:
    """Source of factors, metric and conditions of a row; None for quantities without a printed error."""
    row = prediction.row
    if row.family == "TRN":
        trained = train_case(row)
        return None if isinstance(trained, str) else ("training", "step_time", training_conditions(*trained))
    case, metric = serving_case(row), _METRICS.get(row.metric)
    if isinstance(case, str) or metric is None:
        return None
    tokens = case.prompt + case.output
    return case.engine, metric, serving_conditions(step_model(case), tokens, case.concurrency or 0.0)


def _coverage(key: tuple[str, str, str], members: Sequence[tuple[float, LatencyError]]) -> Coverage:
    factors, metric, split = key
    return Coverage(
        factors=factors,
        metric=metric,
        split=split,
        num_rows=len(members),
        within_median=sum(error <= printed.median for error, printed in members) / len(members),
        within_upper=sum(error <= printed.p90 for error, printed in members) / len(members),
        median=median(printed.median for _, printed in members),
        upper=median(printed.p90 for _, printed in members),
    )
