"""A simulation as a page: latencies, rates, service levels, servers, curves over time, and the basis of times."""

from l4spec.report.charts import time_chart
from l4spec.report.page import Code, Facts, Figure, Lines, Page, Section, Table
from l4spec.report.quantities import ESTIMATE_MARK, Figures, amount, per_second, seconds, usd, whole
from l4spec.report.templating import render
from planners.simulate.capacity import ServiceCapacity
from planners.simulate.result_types import Distribution, ServerResult, SimulationResult, TimeSeries

LATENCY = "Latency"
_LEVELS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def simulate_page(result: SimulationResult) -> Page:
    """The screen of a simulation."""
    sections = [
        Section("", (Lines((headline(result),)),)),
        Section(LATENCY, (_latencies(result),)),
        Section("Rates", (_rates(result),)),
        Section("Servers", (_servers(result.servers),)),
    ]
    sections += [Section(_curve_title(result, curve), (_plot(curve),)) for curve in result.curves]
    sections.append(Section("What the times rest on", (Lines(_basis(result)),)))
    return tuple(sections)


def simulate_report(result: SimulationResult) -> Page:
    """The page with its curves drawn, for documents that can hold pictures."""
    drawn = {_curve_title(result, curve): curve for curve in result.curves}
    return tuple(
        Section(section.title, (_figure(section.title, drawn[section.title]),)) if section.title in drawn else section
        for section in simulate_page(result)
    )


def curves_svg(result: SimulationResult) -> str:
    """Running, waiting and cache use of the first model over time, as a picture of its own."""
    curve = result.curves[0]
    figure = _figure(f"{result.scenario}: {_curve_title(result, curve)}", curve)
    return render(figure.template, about=figure.about, **figure.values)


def _figure(about: str, curve: TimeSeries) -> Figure:
    rows = tuple((name, most) for name, _, most in _rows(curve))
    series = [
        (
            f"{name} ({most})",
            [(at, value / (max(values) or 1)) for at, value in zip(curve.seconds, values, strict=True)],
        )
        for name, values, most in _rows(curve)
    ]
    chart = time_chart(series, curve.seconds[-1] or 1.0, seconds)
    about = f"{about}: running and waiting requests and cache in use, each relative to its largest value"
    return Figure(about, Table(("", "largest"), rows), "chart.svg.j2", {"chart": chart})


def capacity_page(capacity: ServiceCapacity, *, drawn: bool = False) -> Page:
    """The highest rate within the service levels, GPUs by hour for a trace, and the simulation at that rate.

    `drawn`: with its curves as pictures, for documents that can hold them.
    """
    lines = [
        f"{capacity.rate:.3g} requests/s are sustained: {100 * capacity.attainment:.1f} % of them meet the service "
        f"levels; {capacity.beyond:.3g}/s are not"
    ]
    if capacity.hours:
        gpus = capacity.result.num_gpus
        hours = ", ".join(str(count * gpus) for count in capacity.hours)
        lines.append(f"GPUs by the hour of the trace, at its mean rates: {hours}")
    return (Section("", (Lines(tuple(lines)),)), *(simulate_report if drawn else simulate_page)(capacity.result))


def headline(result: SimulationResult) -> str:
    """One sentence on the load and its result."""
    parts = [f"{whole(result.finished)} of {whole(result.requests)} requests finished in {seconds(result.duration)}"]
    if result.refused:
        why = f" ({result.refused_because[0]})" if result.refused_because else ""
        parts.append(f"{whole(result.refused)} refused{why}")
    if result.cut:
        parts.append(f"{whole(result.cut)} cut off")
    state = "" if result.ended == "finished" else f" (ended by {result.ended})"
    return f"{result.scenario}: {', '.join(parts)}{state}"


def _figures(result: SimulationResult) -> Figures:
    return Figures(bool(result.estimated))


def _latencies(result: SimulationResult) -> Table:
    show = _figures(result).seconds
    rows = []
    for name, values in (
        ("time to first token", result.ttft),
        ("time per output token", result.tpot),
        ("between tokens", result.itl),
        ("end to end", result.e2e),
    ):
        if values is not None:
            rows.append((name, *(show(value) for value in _columns(values))))
    return Table(("", "mean", "p50", "p90", "p95", "p99", "max"), tuple(rows), "lrrrrrr")


def _columns(values: Distribution) -> tuple[float, ...]:
    return values.mean, values.p50, values.p90, values.p95, values.p99, values.max


def _rates(result: SimulationResult) -> Facts:
    mark = _figures(result).mark
    rows = [
        (
            "requests",
            f"{mark}{result.requests_per_second:.3g}/s, {per_second(result.mean_in_system)} in the system on average",
        ),
        (
            "tokens",
            f"{mark}{amount(result.input_tokens_per_second)}/s in, {amount(result.output_tokens_per_second)}/s out",
        ),
        (
            "per GPU",
            f"{mark}{per_second(result.output_tokens_per_second_per_gpu)} tokens/s out on each of {result.num_gpus}",
        ),
        ("good", _good(result, mark)),
    ]
    if result.usd_per_million_output_tokens is not None:
        rows.append(("cost", f"{mark}{usd(result.usd_per_million_output_tokens)} a million output tokens"))
    for name, interval in result.intervals.items():
        rows.append((name, f"{interval.mean:.4g} ± {interval.half_width:.2g} (95 %, {interval.repeats} repeats)"))
    return Facts(tuple(rows))


def _good(result: SimulationResult, mark: str) -> str:
    """The share of requests within the service levels, and within each of them."""
    if not result.levels:
        return "no service level was given (as --ttft '1 s' --tpot '50 ms')"
    each = ", ".join(
        f"{level.name.upper()} {seconds(level.limit)}: {mark}{100 * level.met:.1f} %" for level in result.levels
    )
    return f"{mark}{100 * result.attainment:.1f} % of requests, {result.goodput:.3g}/s, by the service levels ({each})"


def _servers(servers: tuple[ServerResult, ...]) -> Table:
    headers = ("", "GPUs", "layout", "busy", "prefix hits", "preemptions", "most running", "waiting", "cache")
    rows = tuple(
        (
            server.key,
            f"{server.replicas} x {server.gpus}",
            server.layout,
            f"{100 * server.utilization:.0f} %",
            f"{100 * server.prefix_hit_rate:.1f} %",
            whole(server.preemptions),
            whole(server.peak_running),
            whole(server.peak_waiting),
            f"{100 * server.peak_cache_use:.0f} %",
        )
        for server in servers
    )
    return Table(headers, rows, "lllrrrrrr")


def _curve_title(result: SimulationResult, curve: TimeSeries) -> str:
    span = seconds(curve.seconds[-1])
    return f"Over {span}" if len(result.curves) == 1 else f"{curve.key} over {span}"


def _rows(curve: TimeSeries) -> tuple[tuple[str, list[float], str], ...]:
    return (
        ("running", [float(value) for value in curve.running], f"max {max(curve.running)}"),
        ("waiting", [float(value) for value in curve.waiting], f"max {max(curve.waiting)}"),
        ("cache", list(curve.cache_use), f"max {100 * max(curve.cache_use):.0f} %"),
    )


def _plot(curve: TimeSeries) -> Code:
    return Code(tuple(f"{name:<8} {sparkline(values)}  {most}" for name, values, most in _rows(curve)))


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Values over time in one line of blocks, from 0 to their largest; each column is the largest of its span."""
    columns = [
        max(values[len(values) * i // width : max(len(values) * (i + 1) // width, len(values) * i // width + 1)])
        for i in range(width)
    ]
    most = max(columns)
    if most <= 0:
        return _LEVELS[0] * width
    return "".join(_LEVELS[min(int(value / most * len(_LEVELS)), len(_LEVELS) - 1)] for value in columns)


def _basis(result: SimulationResult) -> tuple[str, ...]:
    lines = list(dict.fromkeys(line for server in result.servers for line in server.basis))
    if result.estimated:
        fields = ", ".join(result.estimated)
        lines.append(f"{ESTIMATE_MARK} depends on fields that have not been published: {fields}")
    lines.append(f"seed {result.seed}; the same seed gives the same numbers")
    return tuple(lines)
