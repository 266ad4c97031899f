"""Fits an engine's serving factors on published rows marked for calibration, and its error on left-out ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log

from planners.evidence.deployments import ServingCase, serving_case
from planners.evidence.least_squares import FittedTerms, fit_terms, shared_noise
from planners.evidence.replay import THROUGHPUT, capacity_of, most_served, served_by, step_model, tokens_per_gpu
from planners.evidence.rows import Row
from planners.evidence.terms import SERVING
from planners.latency_types import Conditions, JudgedRow
from planners.timing.efficiency import ServingEfficiency
from planners.timing.likeness import serving_conditions
from planners.timing.step import StepModel

NOISE = {"ttft_mean": 0.1} | dict.fromkeys(THROUGHPUT, 0.05)
"""Log error within which a row is as good as met, by metric; time per token and end to end: `NOISE_OF_TOKENS`."""
NOISE_OF_TOKENS = 0.02
HOSTS: tuple[dict[str, float], ...] = ({}, {"host_step": 5e-3, "host_sequence": 1e-4})
"""Starting points of fits: the cost is flat where the host never matters."""
WIDE_FROM = 16
"""Sequences above which vLLM's fp8 matmul leaves its smallest tile."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row's case with its measured time in seconds; of a throughput, seconds per token and GPU."""

    row: Row
    case: ServingCase
    metric: str
    measured: float

    @property
    def series(self) -> tuple[object, ...]:
        """Group of rows left out together: all rows of one deployment and workload of one document."""
        case = self.case
        return (self.row.document, case.model, case.hardware, case.layout, case.prompt, case.output)

    @property
    def alike(self) -> tuple[object, ...]:
        """Group of rows whose errors are alike: a metric of a series."""
        return (*self.series, self.metric)


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
        model = self.models[case].with_efficiency(factors)
        if sample.metric in THROUGHPUT:
            return 1 / tokens_per_gpu(case, most_served(case, model))
        served = served_by(case, model)
        if sample.metric == "ttft_mean":
            return served.ttft
        return served.tpot if sample.metric != "e2e_mean" else served.ttft + (case.output - 1) * served.tpot

    def conditions(self, case: ServingCase) -> Conditions:
        """Conditions of a row's measurement; requests at a rate have no load of their own."""
        return serving_conditions(self.models[case], case.prompt + case.output, case.concurrency or 0.0)


def unfit(row: Row) -> str | None:
    """Reason why a calibration row is not used in fits; None for the others."""
    if "_instruct_fp8_" in row.source:
        return "its concurrency, lengths and times agree with no closed loop whose prefill stays below the fp8 peak"
    if row.model == "DeepSeek-R1" and "trtllm" in row.source:
        return (
            "longer outputs decode faster (7.1 against 8.6 ms at 4 clients): tokens are drafted, which is not planned"
        )
    if row.metric in THROUGHPUT and row.tp == "1" and row.ep == "8":
        return "ranks of attention that wait for each other and uneven routing are not planned"
    if row.metric == "e2e_mean" and row.source.startswith("inference-sim"):
        return "its answers were shorter than published: 17.1 s for 1,448 tokens that came every 15.2 ms"
    if row.metric == "ttft_mean" and "trtllm" in row.source and "1024x1024" in row.source and row.tp in ("1", "4"):
        return "the launch script holds prompts back (batch_wait_timeout_iters: 20)"
    return None


def samples_of(rows: Sequence[Row], engine: str) -> tuple[Sample, ...]:
    """The engine's calibration samples, without figures that are published a second time as a test row."""
    tested = {_figure(row) for row in rows if row.family in ("SRV", "THR") and row.split == "test"}
    samples = []
    for row in rows:
        if row.family in ("SRV", "THR") and row.calibrates and unfit(row) is None and _figure(row) not in tested:
            case = serving_case(row)
            if isinstance(case, ServingCase) and case.engine == engine and capacity_of(case) >= 1:
                samples.append(Sample(row, case, row.metric, _seconds(row)))
    return tuple(samples)


def _seconds(row: Row) -> float:
    if row.metric not in THROUGHPUT:
        return row.published / 1e3
    return (1 if row.unit.endswith("/GPU") else row.number("n_gpus") or 1) / row.published


def _figure(row: Row) -> tuple[object, ...]:
    """Key of a measurement, equal for two records of the same one."""
    return serving_case(row), row.metric, row.published


def with_factors(base: ServingEfficiency, values: Mapping[str, float]) -> ServingEfficiency:
    """`base` with other factors."""
    return base.model_copy(update=dict(values))


def fit(
    bench: Bench, base: ServingEfficiency, starts: Sequence[Mapping[str, float]] = HOSTS, *, rounds: int = 60
) -> FittedTerms:
    """The best factors of a bench: a robust fit of log errors, near expected values if rows do not determine them."""

    def residuals(values: Mapping[str, float]) -> list[float]:
        return residuals_of(bench, with_factors(base, values))

    fits = (fit_terms(SERVING, residuals, start, rounds=rounds) for start in starts)
    return min(fits, key=lambda fitted: fitted.cost)


def residuals_of(bench: Bench, factors: ServingEfficiency) -> list[float]:
    """The log error of every sample in units of its noise; rows of one series and metric weigh as one."""
    shared = shared_noise([sample.alike for sample in bench.samples])
    return [
        log(bench.predicted(sample, factors) / sample.measured) / (NOISE.get(sample.metric, NOISE_OF_TOKENS) * more)
        for sample, more in zip(bench.samples, shared, strict=True)
    ]


def leave_one_out(bench: Bench, base: ServingEfficiency, fitted: FittedTerms) -> tuple[JudgedRow, ...]:
    """Every row under factors fitted without its series."""
    rows = []
    for number, series in enumerate(dict.fromkeys(sample.series for sample in bench.samples)):
        rest = Bench(bench.engine, tuple(s for s in bench.samples if s.series != series), bench.models)
        without = with_factors(base, fit(rest, base, (fitted.values,), rounds=8).values)
        for sample in bench.samples:
            if sample.series == series:
                error = bench.predicted(sample, without) / sample.measured - 1
                metric = "ttft" if sample.metric == "ttft_mean" else "tpot"
                rows.append(JudgedRow(metric, error, number, *bench.conditions(sample.case)))
    return tuple(rows)
