"""Charts of times: each kind of layer under the roofline, and estimates with their errors."""

from collections.abc import Iterator

from l4spec.report.charts import TimeSpan, roofline, spans
from l4spec.report.latency import time_range
from l4spec.report.page import Figure, Section, Table
from l4spec.report.quantities import Figures, seconds
from planners.latency_types import Latency, LatencyError, StepLatency
from planners.plan_types import Plan


def roofline_section(plan: Plan) -> Iterator[Section]:
    """Roofline of the kinds of layers, by FLOPs and bytes of a step; none without GPUs."""
    latency = plan.latency
    if latency is None:
        return
    steps = [("prefill", latency.prefill), ("decode", latency.decode), ("train", latency.train)]
    points, rows = [], []
    for color, (name, step) in enumerate(steps):
        for point, row in _points(name, step, plan) if step is not None else ():
            points.append((*point, color))
            rows.append(row)
    if points:
        cluster = plan.cluster.text if plan.cluster else ""
        about = (
            f"Roofline of {cluster}: computing time over memory time of each kind of layer, against the share of peak "
            "arithmetic that its bound allows. Left of 1 memory bounds, right of it arithmetic; below the roof, links."
        )
        table = Table(("layers", "compute", "memory", "links", "bound by", "of the peak"), tuple(rows), "l")
        yield Section("Roofline", (Figure(about, table, "chart.svg.j2", {"chart": roofline(points)}),))


def _points(name: str, step: StepLatency, plan: Plan) -> Iterator[tuple[tuple[str, float, float], tuple[str, ...]]]:
    figures = Figures(bool(plan.estimates.work))
    for kind in step.by_kind:
        longest = max(kind.compute_seconds, kind.memory_seconds, kind.links_seconds)
        if kind.compute_seconds > 0 and kind.memory_seconds > 0:
            peak = kind.compute_seconds / longest
            times = (kind.compute_seconds, kind.memory_seconds, kind.links_seconds)
            row = (f"{name}: {kind.name}", *map(figures.seconds, times), kind.bounded_by, f"{100 * peak:.1f} %")
            yield (f"{name}: {kind.name}", kind.compute_seconds / kind.memory_seconds, peak), row


def times_figure(plan: Plan) -> Iterator[Figure]:
    """TTFT and TPOT, or the training step, with the bound and the range that 90 % of the errors seen leave open."""
    latency = plan.latency
    assert latency is not None, "only called for plans with GPUs"
    rows = list(_spans(latency))
    if not rows:
        return
    figures = Figures(bool(plan.estimates.work))
    cells = tuple(
        (row.name, figures.seconds(row.bound), *("-" if v is None else figures.seconds(v) for v in _rest(row)))
        for row in rows
    )
    headers = ("time", "at least", "estimate", "90 % of errors: from", "to")
    about = "Times: the bound that nothing beats, the estimate, and the range that its errors leave open"
    yield Figure(about, Table(headers, cells), "chart.svg.j2", {"chart": spans(rows, seconds)})


def _rest(row: TimeSpan) -> tuple[float | None, ...]:
    return row.estimate, row.low, row.high


def _spans(latency: Latency) -> Iterator[TimeSpan]:
    errors = {error.metric: error for error in latency.errors}
    for name, metric, bound, estimate in (
        ("TTFT", "ttft", latency.ttft_bound_seconds, latency.ttft_seconds),
        ("TPOT", "tpot", latency.time_per_output_token_bound_seconds, latency.time_per_output_token_seconds),
        ("step", "step_time", latency.step_time_bound_seconds, latency.step_time_seconds),
    ):
        if bound:
            yield TimeSpan(name, bound, estimate, *_range(bound, estimate, errors.get(metric)))


def _range(bound: float, estimate: float | None, error: LatencyError | None) -> tuple[float | None, float | None]:
    """The range of `time_range`; an open upper end is not drawn."""
    return (None, None) if estimate is None or error is None else time_range(bound, estimate, error)


__all__ = ["roofline_section", "times_figure"]
