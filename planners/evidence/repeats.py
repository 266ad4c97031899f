"""Differences between published figures of one setting, which no function of the settings can predict."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from planners.evidence.replay import Prediction
from planners.evidence.spread import errors_of
from planners.evidence.summary import quantity_of
from planners.latency_types import LatencyError

_SETTINGS = (
    "model",
    "hardware",
    "n_gpus",
    "precision_weights",
    "precision_kv",
    "tp",
    "pp",
    "ep",
    "dp",
    "batch_or_concurrency",
    "isl",
    "osl",
    "metric",
)


@dataclass(frozen=True, slots=True)
class Repeats:
    """Settings of one quantity that one source published more than once, with other software or on another day.

    `between`: each figure against the median of its setting, relative. `predicted`: the planner's errors on those rows.
    """

    quantity: str
    split: str
    num_settings: int
    between: LatencyError
    predicted: LatencyError


def repeats(predictions: Iterable[Prediction]) -> tuple[Repeats, ...]:
    """By quantity and split: settings with at least two figures of one source and one prediction for all of them.

    One prediction means that notes differ in nothing that the planner reads (version of a container, date of a run).
    A setting with rows of both splits counts as calibrated.
    """
    settings: dict[tuple[str, ...], list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        row = prediction.row
        if prediction.predicted is not None:
            names = tuple(str(getattr(row, name)) for name in _SETTINGS)
            settings[(quantity_of(prediction), row.document, *names, repr(prediction.predicted))].append(prediction)
    grouped: dict[tuple[str, str], list[list[Prediction]]] = defaultdict(list)
    for (quantity, *_), rows in settings.items():
        if len(rows) > 1:
            split = "calibrate" if any(one.row.calibrates for one in rows) else "test"
            grouped[quantity, split].append(rows)
    return tuple(_repeats(quantity, split, members) for (quantity, split), members in sorted(grouped.items()))


def _repeats(quantity: str, split: str, settings: list[list[Prediction]]) -> Repeats:
    between: list[tuple[float, object]] = []
    for members in settings:
        middle = median(member.row.published for member in members)
        between.extend((middle / member.row.published - 1, member.row.document) for member in members)
    ours = [(p.error, p.row.document) for members in settings for p in members if p.error is not None]
    return Repeats(quantity, split, len(settings), errors_of(quantity, between), errors_of(quantity, ours))
