"""How often a printed error is met: rows whose own error stays within what their plan would have printed.

Rows marked `calibrate` are judged by factors fitted without their series, and their printed error comes from the rows
of other series; rows marked `test` played no part in either.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from planners.catalog.loader import load
from planners.evidence.deployments import ServingCase, serving_case
from planners.evidence.fit_training import FAMILIES
from planners.evidence.replay import THROUGHPUT, Prediction, step_model
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
    for name, rows in _judged().items():
        for row in rows:
            others = [other for other in rows if other.series != row.series]
            _add(pairs, (name, row.metric, "left out"), row.error, error_like(others, row.metric, row.conditions))
    for prediction in predictions:
        if prediction.row.split == "test" and prediction.error is not None:
            name, metric, printed = _printed(prediction)
            _add(pairs, (name, metric, "test"), prediction.error, printed)
    return tuple(_coverage(key, members) for key, members in sorted(pairs.items()))


def _add(
    pairs: dict[tuple[str, str, str], list[tuple[float, LatencyError]]],
    key: tuple[str, str, str],
    error: float,
    printed: LatencyError | None,
) -> None:
    if printed is not None:
        pairs[key].append((abs(error), printed))


def _judged() -> dict[str, tuple[JudgedRow, ...]]:
    """The judged rows of every engine, and those of training, which its families share."""
    rows = {name: load("efficiency", ServingEfficiency, name).judged for name in ENGINES}
    rows["training"] = load("efficiency", TrainingEfficiency, f"train-{next(iter(FAMILIES))}").judged
    return rows


def _printed(prediction: Prediction) -> tuple[str, str, LatencyError | None]:
    """What a plan of a test row would print: factors, metric, error; None for quantities without one."""
    row = prediction.row
    if row.family == "TRN":
        trained = train_case(row)
        if isinstance(trained, str):
            return "training", "step_time", None
        model, load_ = trained
        return (
            "training",
            "step_time",
            error_like(_judged()["training"], "step_time", training_conditions(model, load_)),
        )
    case = serving_case(row)
    metric = _METRICS.get(row.metric)
    if isinstance(case, str) or metric is None or row.metric in THROUGHPUT:
        return "", "", None
    return case.engine, metric, error_like(_judged().get(case.engine, ()), metric, _conditions(case))


def _conditions(case: ServingCase) -> Conditions:
    return serving_conditions(step_model(case), case.prompt + case.output, case.concurrency or 0.0)


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
