"""Fits the training factors of all hardware families together, and measures the error on left-out sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from planners.evidence.minimise import minimise
from planners.evidence.rows import Row
from planners.evidence.spread import Spread, errors_of
from planners.evidence.training_replay import train_case
from planners.timing.efficiency import TrainingEfficiency
from planners.timing.training_step import TrainLoad, TrainModel

FAMILIES: dict[str, tuple[str, ...]] = {
    "hopper": ("h100-sxm", "h200"),
    "blackwell": ("b200", "gb200"),
    "ampere": ("a100-80gb",),
}
MATMULS: dict[str, dict[str, float]] = {
    "hopper": {"bf16": 0.68, "fp8": 0.6},
    "blackwell": {"bf16": 0.65, "fp8": 0.55, "mxfp8": 0.5, "fp4": 0.42},
    "ampere": {"bf16": 0.6},
}
"""Expected shares of the dense peak by family and format."""
SHARED: dict[str, tuple[float, float]] = {
    "attention": (0.45, 0.15),
    "moved": (1.5, 0.2),
    "moe_moved": (3.0, 0.7),
    "tp": (0.35, 0.3),
    "ep": (0.6, 0.3),
    "cp": (0.3, 0.7),
    "torchtitan": (1.3, 0.3),
    "maxtext": (1.1, 0.15),
}
MATMUL_SPREAD = 0.12
PRIOR_WEIGHT = 0.0005
TRAINERS = ("torchtitan", "maxtext")


@dataclass(frozen=True, slots=True)
class TrainSample:
    """A calibration row with its step in seconds."""

    row: Row
    model: TrainModel
    load: TrainLoad
    seconds: float

    @property
    def family(self) -> str:
        """The hardware family of the row."""
        name = self.model.machine.hardware.name
        return next(family for family, members in FAMILIES.items() if name in members)

    @property
    def series(self) -> tuple[str, str, str]:
        """What is left out together: one document's rows of one model in one number format."""
        return (self.row.document, self.model.graph.name, self.row.precision_weights)


def training_samples(rows: Sequence[Row]) -> tuple[TrainSample, ...]:
    """Calibration rows whose time or rate gives the step's seconds; further metrics of the same run add nothing."""
    samples = []
    for row in rows:
        if (
            row.family == "TRN"
            and row.calibrates
            and row.metric in ("step_time", "step_time_ms", "tokens_per_s_per_gpu")
        ):
            case = train_case(row)
            if not isinstance(case, str):
                model, load = case
                samples.append(TrainSample(row, model, load, seconds_of(row, load)))
    return tuple(samples)


def most_devices(samples: Sequence[TrainSample], family: str) -> dict[str, int]:
    """Devices of a family's largest run among the samples, by the format of its matmuls."""
    largest_run: dict[str, int] = {}
    for sample in samples:
        if sample.family == family:
            dtype = sample.model.scheme.table.compute_dtype
            largest_run[dtype] = max(largest_run.get(dtype, 0), sample.load.num_devices)
    return largest_run


def seconds_of(row: Row, load: TrainLoad) -> float:
    """The published step in seconds."""
    if row.metric == "tokens_per_s_per_gpu":
        return load.sequences * load.length / (row.published * load.num_devices)
    return row.published / (1e3 if row.metric.endswith("ms") else 1.0)


NAMES = tuple(f"{family}.{dtype}" for family, shares in MATMULS.items() for dtype in shares) + tuple(SHARED)
EXPECTED: tuple[tuple[float, float], ...] = (
    *((share, MATMUL_SPREAD) for shares in MATMULS.values() for share in shares.values()),
    *SHARED.values(),
)


def efficiencies(point: Sequence[float]) -> dict[str, TrainingEfficiency]:
    """The factors of a point in log space, by family."""
    values = {name: exp(value) for name, value in zip(NAMES, point, strict=True)}
    shared = {name: values[name] for name in SHARED if name not in TRAINERS}
    return {
        family: TrainingEfficiency(
            name=f"train-{family}",
            description=f"training on {family}",
            source="planners/evidence/published.csv",
            hardware=members,
            matmul={dtype: min(values[f"{family}.{dtype}"], 1.5) for dtype in MATMULS[family]},
            trainers={name: values[name] for name in TRAINERS},
            attention=shared["attention"],
            moved=shared["moved"],
            moe_moved=shared["moe_moved"],
            tp=shared["tp"],
            ep=shared["ep"],
            cp=shared["cp"],
        )
        for family, members in FAMILIES.items()
    }


def predicted(sample: TrainSample, factors: dict[str, TrainingEfficiency]) -> float:
    """The step's seconds under these factors."""
    model = TrainModel(sample.model.graph, sample.model.scheme, sample.model.machine, factors[sample.family])
    seconds = model.time(sample.load).estimate
    assert seconds is not None, sample.row.id
    return seconds


def fit(samples: Sequence[TrainSample], *, start: Sequence[float] | None = None, rounds: int = 3000) -> list[float]:
    """The point that fits the samples best, in log space."""

    def cost(point: Sequence[float]) -> float:
        factors = efficiencies(point)
        errors = (log(predicted(sample, factors) / sample.seconds) for sample in samples)
        total = sum(sqrt(0.03**2 + error**2) for error in errors)
        pull = sum(((x - log(at)) / wide) ** 2 for x, (at, wide) in zip(point, EXPECTED, strict=True))
        return total / len(samples) + PRIOR_WEIGHT * pull

    best: Sequence[float] = [log(at) for at, _ in EXPECTED] if start is None else start
    for _ in range(3 if start is None else 1):
        best = minimise(cost, best, rounds=rounds)
    return list(best)


def leave_one_out(samples: Sequence[TrainSample], fitted: Sequence[float], *, rounds: int = 250) -> tuple[Spread, ...]:
    """Errors of every series under factors fitted without it."""
    errors: list[tuple[float, object]] = []
    for series in dict.fromkeys(sample.series for sample in samples):
        rest = [sample for sample in samples if sample.series != series]
        factors = efficiencies(fit(rest, start=fitted, rounds=rounds))
        errors.extend((predicted(s, factors) / s.seconds - 1, series) for s in samples if s.series == series)
    return (errors_of("step_time", errors),)
