"""Fits the training factors of all hardware families together, and measures the error on left-out sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

from planners.evidence.least_squares import FittedTerms, fit_terms, shared_noise
from planners.evidence.rows import Row
from planners.evidence.terms import ATTENTION_OF, MATMULS, TRAINERS, TRAINING
from planners.evidence.training_replay import train_case
from planners.latency_types import JudgedRow
from planners.timing.efficiency import TrainingEfficiency
from planners.timing.likeness import training_conditions
from planners.timing.training_step import TrainLoad, TrainModel

FAMILIES: dict[str, tuple[str, ...]] = {
    "hopper": ("h100-sxm", "h200"),
    "blackwell": ("b200", "gb200"),
    "ampere": ("a100-80gb",),
}
SHARED = tuple(term.name for term in TRAINING if "." not in term.name and term.name not in TRAINERS)
"""Factors that every family has."""
NOISE = 0.03
"""Log error within which a row is as good as met."""


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
        """Group of rows left out together: one document's rows of one model in one number format."""
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


def factor_of(values: Mapping[str, float], name: str, family: str) -> float:
    """A factor in a family: element-wise ones have a part of the family's own where one is fitted."""
    own = values.get(f"{family}.moved", 1.0) if name in ("moved", "moe_moved") else 1.0
    return values[name] * own


def efficiencies(values: Mapping[str, float]) -> dict[str, TrainingEfficiency]:
    """The factors by family."""
    return {
        family: TrainingEfficiency.model_validate(
            {
                "name": f"train-{family}",
                "description": f"training on {family}",
                "source": "planners/evidence/published.csv",
                "hardware": members,
                "matmul": {dtype: values[f"{family}.{dtype}"] for dtype in MATMULS[family]},
                "trainers": {name: values[name] for name in TRAINERS},
                "attention_of": {name: values[f"{name}.attention"] for name in ATTENTION_OF},
                **{name: factor_of(values, name, family) for name in SHARED},
            }
        )
        for family, members in FAMILIES.items()
    }


def predicted(sample: TrainSample, factors: dict[str, TrainingEfficiency]) -> float:
    """The step's seconds under these factors."""
    model = TrainModel(sample.model.graph, sample.model.scheme, sample.model.machine, factors[sample.family])
    seconds = model.time(sample.load).estimate_seconds
    assert seconds is not None, sample.row.id
    return seconds


def fit(samples: Sequence[TrainSample], start: Mapping[str, float] | None = None) -> FittedTerms:
    """The factors that fit the samples best; rows of one series weigh as one."""
    noise = [NOISE * more for more in shared_noise([sample.series for sample in samples])]

    def residuals(values: Mapping[str, float]) -> list[float]:
        factors = efficiencies(values)
        times = [predicted(sample, factors) for sample in samples]
        return [log(t / s.seconds) / n for t, s, n in zip(times, samples, noise, strict=True)]

    return fit_terms(TRAINING, residuals, start)


def leave_one_out(samples: Sequence[TrainSample], fitted: FittedTerms) -> tuple[JudgedRow, ...]:
    """Every row under factors fitted without its series."""
    rows = []
    for number, series in enumerate(dict.fromkeys(sample.series for sample in samples)):
        rest = [sample for sample in samples if sample.series != series]
        factors = efficiencies(fit(rest, fitted.values).values)
        for sample in samples:
            if sample.series == series:
                error = predicted(sample, factors) / sample.seconds - 1
                rows.append(JudgedRow("step_time", error, number, *training_conditions(sample.model, sample.load)))
    return tuple(rows)
