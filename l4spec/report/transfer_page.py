"""Report of `l4spec transfer`: loss over learning rates at each size, and feature sizes, as charts and tables."""

from collections.abc import Iterator, Mapping, Sequence
from math import floor, isfinite
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from l4spec.report.charts import UprightAxis, level_chart
from l4spec.report.page import Bar, Bars, Block, Figure, Lines, Section, Table

if TYPE_CHECKING:
    from l4spec.training.transfer import FeatureSize, TransferPoint, Transferred


def sweep_section(points: "Sequence[TransferPoint]", rows: "Sequence[Transferred]") -> Section:
    """Loss over rates at each growth of one axis; infinite losses are of runs that diverged."""
    axis, rates = points[0].axis, list(dict.fromkeys(point.rate for point in points))
    means = {
        row.times: {rate: fmean(p.loss for p in points if (p.times, p.rate) == (row.times, rate)) for rate in rates}
        for row in rows
    }
    losses = Table(
        ("", *(f"rate x{rate:g}" for rate in rates)),
        tuple((f"{axis} x{row.times}", *_losses(means[row.times], row.best_rate)) for row in rows),
    )
    finite = {times: {r: loss for r, loss in by.items() if isfinite(loss)} for times, by in means.items()}
    series = [(f"{axis} x{times}", sorted(by.items())) for times, by in finite.items() if by]
    about = f"{_means_of(len({point.seed for point in points}))} of the loss of the last steps."
    blocks: list[Block] = [losses]
    if series:
        level = _level([loss for _, by in series for _, loss in by], "{:.2f}")
        chart = level_chart(series, sorted(rates), (), "factor on the learning rate; up: loss", level)
        blocks = [Figure(about, losses, "chart.svg.j2", {"chart": chart}), _bars(series, level)]
    conclusions = Lines(tuple(_moves(axis, rows, rates)))
    return Section(f"Loss over {axis}", (*blocks, _transfer_table(axis, rows, rates), conclusions))


def _means_of(num_seeds: int) -> str:
    return "One seed" if num_seeds == 1 else f"Means over {num_seeds} seeds"


def _losses(means: Mapping[float, float], best: float) -> tuple[str, ...]:
    """A cell for each rate; the best is starred if it is finite."""
    return tuple(
        (f"{mean:.4f}" if isfinite(mean) else "diverged") + ("*" if rate == best and isfinite(mean) else " ")
        for rate, mean in means.items()
    )


def _level(values: Sequence[float], form: str) -> UprightAxis:
    """An axis from the least to the largest value, rounded outwards to tenths of the largest; never of no length."""
    step = max(map(abs, values)) / 10 or 1.0
    low = step * floor(min(values) / step)
    return UprightAxis(low if low < max(values) else max(values) - step, max(values), form.format)


def _bars(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], level: UprightAxis) -> Bars:
    """The same for a terminal, with a bar for each value."""
    return Bars(
        tuple(
            Bar(f"{name}, x{x:g}", level.text(value), round(1000 * level.share(value)))
            for name, points in series
            for x, value in points
        ),
        1000,
    )


def _transfer_table(axis: str, rows: "Sequence[Transferred]", rates: Sequence[float]) -> Table:
    first = rows[0].best_rate
    return Table(
        ("", "best rate", "steps moved", f"loss at x{first:g} less the best", "standard error", "transfers"),
        tuple(
            (
                f"{axis} x{row.times}",
                f"x{row.best_rate:g}" if isfinite(row.tuned) else "-",
                (f"{row.moved:+d}" if row.moved else "0") if isfinite(row.tuned) else "-",
                f"{row.excess:.4f} ({row.excess / row.tuned:.2%})" if isfinite(row.excess) else "diverged",
                "-" if row.error is None else f"{row.error:.4f}",
                ("yes" if row.is_close else "no") if len(rates) > 1 else "-",
            )
            for row in rows
        ),
    )


def _moves(axis: str, rows: "Sequence[Transferred]", rates: Sequence[float]) -> Iterator[str]:
    """Conclusions of a sweep, and their limits: a grid of one rate has none, and beyond its ends nothing is known."""
    moved = [row.moved for row in rows if isfinite(row.tuned)]
    if not isfinite(rows[0].tuned):
        yield f"runs at x{rows[0].times} diverge at every rate: there is no best one to transfer"
        return
    if len(rates) < 2:
        yield "one rate alone says nothing about transfer: give several as --rates"
        return
    yield (
        f"the best rate moves by {max(moved) - min(moved)} steps of the grid; a rate transfers where its loss is "
        "within the larger of 0.5 % and two standard errors of the best"
    )
    ends = [f"{axis} x{row.times}" for row in rows if isfinite(row.tuned) and row.best_rate in (min(rates), max(rates))]
    if ends:
        yield f"the best rate of {', '.join(ends)} is at an end of the grid: rates beyond it may be better"


def features_section(sizes: "Sequence[FeatureSize]", num_steps: int) -> Section:
    """Mean |output| of every node at each growth of one axis, and the largest over the least."""
    axis, times = sizes[0].axis, list(dict.fromkeys(one.times for one in sizes))
    by: dict[str, dict[int, list[float]]] = {}
    for one in sizes:
        by.setdefault(one.node, {}).setdefault(one.times, []).append(one.size)
    common = {node: grown for node, grown in by.items() if all(number in grown for number in times)}
    means = {node: [fmean(grown[number]) for number in times] for node, grown in common.items()}
    rows = tuple((node, *(_size(common[node][number]) for number in times), _spread(means[node])) for node in common)
    table = Table(("", *(f"{axis} x{number}" for number in times), "largest / least"), rows)
    series = [(node, list(zip(map(float, times), each, strict=True))) for node, each in means.items()]
    level = _level([mean for each in means.values() for mean in each], "{:.3g}")
    chart = level_chart(series, [float(number) for number in times], (), f"{axis}; up: mean |output|", level)
    about = f"{_means_of(len({one.seed for one in sizes}))} of every layer's outputs."
    figure = Figure(about, table, "chart.svg.j2", {"chart": chart})
    return Section(f"Mean |output| after {num_steps} steps", (figure, _bars(series, level)))


def _spread(means: Sequence[float]) -> str:
    return f"{max(means) / min(means):.2f}" if min(means) > 0 else "-"


def _size(values: Sequence[float]) -> str:
    """The mean, and with several seeds their deviation."""
    return f"{fmean(values):.4f}" + (f" +- {stdev(values):.4f}" if len(values) > 1 else "")
