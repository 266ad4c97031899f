"""Fits an engine's serving factors on published rows marked for calibration, and its error on left-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log, sqrt

from planners.evidence.deployments import ServingCase, serving_case
from planners.evidence.minimise import minimise
from planners.evidence.replay import capacity_of, served_by, step_model
from planners.evidence.rows import Row
from planners.evidence.spread import Spread, errors_of
from planners.timing.efficiency import ServingEfficiency
from planners.timing.step import StepModel

PRIORS: dict[str, tuple[float, float]] = {
    "memory": (0.85, 0.08),  # a streaming kernel reaches 0.8 to 0.92 of the datasheet's bandwidth
    "cache": (0.60, 0.40),  # paged attention of few heads reaches less
    "compute": (0.55, 0.25),  # at most 0.71 of the fp8 peak (max achievable matmul, stas00/ml-engineering)
    "attention": (0.45, 0.30),  # flash attention's prefill
    "links": (0.75, 0.05),  # bus bandwidth of large all-reduces
    "layer": (20e-6, 0.7),  # a dozen launches
    "moe_layer": (78e-6, 0.5),  # midway between vLLM's dense block and SGLang's DeepSeek block, which also has MLA
    "wide_layer": (10e-6, 1.5),
    "collective": (4e-6, 0.7),  # an all-reduce of a few KB inside a host
    "host_step": (1e-3, 1.5),
    "host_sequence": (50e-6, 1.5),
    "request": (30e-3, 1.0),
}
"""Where each factor is expected and its spread in log units: broad, but enough to keep unidentified ones plausible."""
SHARES = ("memory", "cache", "compute", "attention", "links")
"""Shares of a peak, which end at 1."""
PRIOR_WEIGHT = 0.001
WIDE_FROM = 16
"""Sequences above which vLLM's fp8 matmul leaves its smallest tile."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row's case with its measured time in seconds."""

    row: Row
    case: ServingCase
    metric: str
    measured: float

    @property
    def series(self) -> tuple[object, ...]:
        """What is left out together: all rows of one deployment and workload of one document."""
        case = self.case
        return (self.row.document, case.model, case.hardware, case.layout, case.prompt, case.output)

    @property
    def weight(self) -> float:
        """Time per token decides; time to first token is noisier and tells of prefill."""
        return 0.3 if self.metric == "ttft_mean" else 1.0


@dataclass
class Bench:
    """The samples of an engine, with models that remember their steps."""

    engine: str
    samples: tuple[Sample, ...]
    models: dict[ServingCase, StepModel] = field(default_factory=dict)

    def predicted(self, sample: Sample, factors: ServingEfficiency) -> float:
        """Seconds that `factors` gives for a sample's metric."""
        case = sample.case
        if case not in self.models:
            self.models[case] = step_model(case, factors)
        known = self.models[case]
        model = StepModel(
            known.graph, known.scheme, known.layout, known.machine, known.kv_dtype_bytes, factors, totals=known.totals
        )
        served = served_by(case, model)
        if sample.metric == "ttft_mean":
            return served.ttft
        return served.tpot if sample.metric != "e2e_mean" else served.ttft + (case.output - 1) * served.tpot


def unfit(row: Row) -> str | None:
    """Why a calibration row is not fitted on; None for the others."""
    if "_instruct_fp8_" in row.source:
        return "its concurrency, lengths and times agree with no closed loop whose prefill stays below the fp8 peak"
    if row.model == "DeepSeek-R1" and "trtllm" in row.source:
        return (
            "longer outputs decode faster (7.1 against 8.6 ms at 4 clients): tokens are drafted, which is not planned"
        )
    if row.metric == "ttft_mean" and "trtllm" in row.source and "1024x1024" in row.source and row.tp in ("1", "4"):
        return "the launch script holds prompts back (batch_wait_timeout_iters: 20)"
    return None


def samples_of(rows: Sequence[Row], engine: str) -> tuple[Sample, ...]:
    """The engine's calibration samples, without figures that are published a second time as a test row."""
    tested = {_figure(row) for row in rows if row.family == "SRV" and row.split == "test"}
    samples = []
    for row in rows:
        if row.family == "SRV" and row.calibrates and unfit(row) is None and _figure(row) not in tested:
            case = serving_case(row)
            if isinstance(case, ServingCase) and case.engine == engine and capacity_of(case) >= 1:
                samples.append(Sample(row, case, row.metric, row.published / 1e3))
    return tuple(samples)


def _figure(row: Row) -> tuple[object, ...]:
    """What makes two rows the same measurement, whatever their records are called."""
    return serving_case(row), row.metric, row.published


def with_factors(base: ServingEfficiency, point: Sequence[float]) -> ServingEfficiency:
    """`base` with the factors of a point in log space."""
    values = {name: exp(value) for name, value in zip(PRIORS, point, strict=True)}
    values |= {name: min(1.0, values[name]) for name in SHARES}
    return base.model_copy(update=values)


def fit(
    bench: Bench, base: ServingEfficiency, *, start: Sequence[float] | None = None, rounds: int = 4000
) -> ServingEfficiency:
    """The factors that fit a bench best: a robust mean of log errors, held near the priors where the data is silent."""

    def cost(point: Sequence[float]) -> float:
        factors = with_factors(base, point)
        total = sum(_cost_of(bench, sample, factors) for sample in bench.samples)
        pull = sum(((x - log(at)) / wide) ** 2 for x, (at, wide) in zip(point, PRIORS.values(), strict=True))
        return total / len(bench.samples) + PRIOR_WEIGHT * pull

    starts = [_expected(), _expected(host_step=5e-3, host_sequence=1e-4)] if start is None else [list(start)]
    factors = [minimise(cost, minimise(cost, first, rounds=rounds // 2), rounds=rounds // 2) for first in starts]
    return with_factors(base, min(factors, key=cost))


def _expected(**others: float) -> list[float]:
    """The priors' centres in log space; a fast and a slow host, since the cost is flat where the host never matters."""
    return [log(others.get(name, at)) for name, (at, _) in PRIORS.items()]


def _cost_of(bench: Bench, sample: Sample, factors: ServingEfficiency) -> float:
    """Close to the absolute log error; below 2 % (time to first token: 10 %) a row is as good as met."""
    error = log(bench.predicted(sample, factors) / sample.measured)
    floor = 0.1 if sample.metric == "ttft_mean" else 0.02
    return sample.weight * sqrt(floor**2 + error**2)


def point_of(factors: ServingEfficiency) -> list[float]:
    """The factors in log space."""
    return [log(getattr(factors, name)) for name in PRIORS]


def leave_one_out(bench: Bench, fitted: ServingEfficiency, *, rounds: int = 400) -> tuple[Spread, ...]:
    """Errors of every series under factors fitted without it."""
    residuals: dict[str, list[tuple[float, object]]] = {"tpot": [], "ttft": []}
    for series in dict.fromkeys(sample.series for sample in bench.samples):
        rest = Bench(bench.engine, tuple(s for s in bench.samples if s.series != series), bench.models)
        without = fit(rest, fitted, start=point_of(fitted), rounds=rounds) if rest.samples else fitted
        for sample in bench.samples:
            if sample.series == series:
                error = bench.predicted(sample, without) / sample.measured - 1
                residuals["ttft" if sample.metric == "ttft_mean" else "tpot"].append((error, series))
    return tuple(errors_of(metric, errors) for metric, errors in residuals.items() if errors)
