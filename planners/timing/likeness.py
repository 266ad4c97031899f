"""Measured rows that resemble a deployment, and the errors of their estimates, which a plan prints.

A row was judged by factors fitted without its series. Rows are alike by properties that affect the error: routed
experts, the weights' number format, the length of a sequence, the number of GPUs, and the requests per GPU. Lengths,
GPUs and loads are alike within a factor of four. Each of these counts, in this order, where it leaves `LEAST_ROWS`;
nothing is like a deployment of routed experts but a row of them.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, log2
from typing import TYPE_CHECKING

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from planners.counts.params import count_params
from planners.counts.weights import Scheme, weigh
from planners.deferred import Deferred
from planners.latency_types import Conditions, JudgedRow, LatencyError
from planners.timing.step import StepModel

if TYPE_CHECKING:
    from planners.timing.efficiency import ServingEfficiency, TrainingEfficiency
    from planners.timing.training_step import TrainLoad, TrainModel

_BITS = {"fp4": 4, "int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "tf32": 32, "fp32": 32}
LEAST_ROWS = 8
LEAST_SERIES = 4
"""Rows of one series err together: the spread of fewer series means little."""
ROWS_OF_A_P90 = 20
"""With fewer rows the largest error replaces the 90th percentile, since fewer than two are beyond that."""
FACTOR = 4.0
"""Within which lengths, numbers of GPUs and loads are alike."""


def serving_conditions(model: StepModel, tokens: float, sequences: float) -> Conditions:
    """Conditions of a served model: sequences of `tokens`, `sequences` of them at once on all its devices."""
    gpus = model.layout.num_devices
    routed = any(group.declaration.routed is not None for group in model.graph.groups)
    return Conditions(routed, bits_of(model.graph, model.scheme), tokens, gpus, sequences / gpus)


def training_conditions(model: "TrainModel", load: "TrainLoad") -> Conditions:
    """Conditions of a training run."""
    routed = any(group.declaration.routed is not None for group in model.graph.groups)
    bits = _BITS[model.scheme.table.compute_dtype]
    return Conditions(routed, bits, load.length, load.num_devices)


@kept_with(maxsize=64)
def bits_of(graph: LayerGraph, scheme: Scheme) -> int:
    """Bits that most weights are stored in, to the next power of two."""
    stored = weigh(graph, scheme).bytes * 8 / max(count_params(graph).total, 1)
    return 1 << round(log2(stored))


def _close(a: float, b: float) -> bool:
    return a == b or (min(a, b) > 0 and max(a, b) <= FACTOR * min(a, b))


_ALIKE: Mapping[str, Callable[[Conditions, Conditions], bool]] = {
    "experts": lambda a, b: a.routed == b.routed,
    "number format": lambda a, b: a.bits == b.bits,
    "length": lambda a, b: _close(a.tokens, b.tokens),
    "GPUs": lambda a, b: _close(a.gpus, b.gpus),
    "load": lambda a, b: _close(a.load, b.load),
}
"""Criteria of likeness between rows and deployments, in order of weight."""


def error_like(rows: Sequence[JudgedRow], metric: str, case: Conditions) -> LatencyError | None:
    """The error of the rows of a metric that are most like these conditions; None without a row of the metric.

    All rows where too few have routed experts as this case has, or none: they are alike in nothing then.
    """
    alike = [row for row in rows if row.metric == metric]
    if not alike:
        return None
    agreed: tuple[str, ...] = ()
    for name, is_alike in _ALIKE.items():
        closer = [row for row in alike if is_alike(row.conditions, case)]
        if len(closer) == len(alike) or _enough(closer):
            alike, agreed = closer, (*agreed, name)
        elif name == "experts":
            break
    return _summary(metric, alike, agreed)


def _enough(rows: Sequence[JudgedRow]) -> bool:
    return len(rows) >= LEAST_ROWS and len({row.series for row in rows}) >= LEAST_SERIES


def errors_like(factors: "ServingEfficiency | TrainingEfficiency", case: Conditions) -> Deferred[LatencyError]:
    """The error of each metric on the rows most like a deployment; for a file without rows, its own statement."""
    return Deferred(lambda: tuple(error_like(factors.judged, error.metric, case) or error for error in factors.errors))


def _summary(metric: str, rows: Sequence[JudgedRow], agreed: tuple[str, ...]) -> LatencyError:
    from statistics import median

    sizes = [abs(row.error) for row in rows]
    return LatencyError(
        metric=metric,
        median=median(sizes),
        p90=upper(sizes),
        num_rows=len(sizes),
        num_sources=len({row.series for row in rows}),
        alike=agreed,
        unlike=tuple(name for name in _ALIKE if name not in agreed),
    )


def upper(sizes: Sequence[float]) -> float:
    """Bound that nine of ten further errors stay below: the ceil(0.9 (n + 1))-th smallest of n, or the largest.

    Split conformal prediction (arXiv:2107.07511, section 1): the plain percentile of few errors is too small. With
    fewer than `ROWS_OF_A_P90` errors it is the largest.
    """
    rank = ceil(0.9 * (len(sizes) + 1))
    return max(sizes) if len(sizes) < ROWS_OF_A_P90 else sorted(sizes)[min(len(sizes), rank) - 1]
