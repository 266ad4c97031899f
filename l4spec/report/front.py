"""A Pareto front as a picture: characters for a terminal, SVG for a file, a figure with its numbers for a page."""

from collections.abc import Iterable
from math import ceil, log10

from l4spec.report.charts import front_chart
from l4spec.report.page import Figure, Table
from l4spec.report.quantities import per_second
from l4spec.report.templating import render
from planners.search.search_types import FrontPoint

_WIDTH, _HEIGHT = 60, 12


def draw_front(points: tuple[FrontPoint, ...]) -> tuple[str, ...]:
    """The front in characters: `o` meets every limit, `.` does not. Both axes begin at 0."""
    right, top = _end(p.tokens_per_second_per_user for p in points), _end(p.tokens_per_second_per_gpu for p in points)
    grid = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for point in sorted(points, key=lambda p: p.meets_limits):
        column = round(point.tokens_per_second_per_user / right * _WIDTH)
        row = _HEIGHT - round(point.tokens_per_second_per_gpu / top * _HEIGHT)
        grid[row][column] = "o" if point.meets_limits else "."
    labels = [f"{top:,.0f}" if row == 0 else "0" if row == _HEIGHT else "" for row in range(_HEIGHT + 1)]
    width = max(map(len, labels))
    lines = [f"{label:>{width}} |{''.join(cells)}".rstrip() for label, cells in zip(labels, grid, strict=True)]
    axis = f"{'':>{width}} +{'-' * (_WIDTH + 1)}"
    end = f"{right:,.0f} tokens/s of a user"
    return (*lines, axis, f"{'':>{width}}  0{end:>{_WIDTH}}", "o meets every limit, . does not")


def front_svg(points: tuple[FrontPoint, ...], title: str) -> str:
    """The front as a picture of its own. Raises UserError without jinja2."""
    figure = front_figure(points)
    return render(figure.template, about=title, **figure.values)


def front_figure(points: tuple[FrontPoint, ...]) -> Figure:
    """The front drawn, its points numbered from the left; their numbers are in the table."""
    ordered = sorted(points, key=lambda p: p.tokens_per_second_per_user)
    ends = _end(p.tokens_per_second_per_user for p in points), _end(p.tokens_per_second_per_gpu for p in points)
    dots = [(_name(p), p.tokens_per_second_per_user, p.tokens_per_second_per_gpu, p.meets_limits) for p in ordered]
    rows = tuple(
        (
            str(number),
            f"{p.num_gpus}x{p.hardware}",
            str(p.layout),
            p.quantization,
            per_second(p.tokens_per_second_per_user),
            per_second(p.tokens_per_second_per_gpu),
            "yes" if p.meets_limits else "no",
        )
        for number, p in enumerate(ordered, 1)
    )
    headers = ("", "GPUs", "layout", "weights", "tokens/s of a user", "tokens/s of a GPU", "meets every limit")
    about = (
        f"Pareto front of {len(points)} deployments: no other that fits has more tokens/s both of a GPU and of a user. "
        f"{sum(p.meets_limits for p in points)} of them meet every limit."
    )
    chart = front_chart(dots, ends, "tokens/s of a user; up: tokens/s of a GPU")
    return Figure(about, Table(headers, rows, "rlllrrl"), "chart.svg.j2", {"chart": chart})


def _name(point: FrontPoint) -> str:
    user, gpu = point.tokens_per_second_per_user, point.tokens_per_second_per_gpu
    rates = f"{per_second(user)} of a user, {per_second(gpu)} of a GPU"
    return f"{point.num_gpus}x{point.hardware} {point.layout}, {point.quantization} weights: tokens/s {rates}"


def _end(values: Iterable[float]) -> float:
    """The end of an axis: the largest value rounded up to two digits."""
    largest = max(values)
    digits = 10.0 ** (ceil(log10(largest)) - 2)
    return float(ceil(largest / digits) * digits)
