"""A Pareto front as a picture: characters for a terminal, SVG for a page."""

from collections.abc import Iterable
from html import escape
from math import ceil, log10

from planners.search.search_types import FrontPoint

_WIDTH, _HEIGHT = 60, 12
_SVG_WIDTH, _SVG_HEIGHT, _MARGIN = 640, 400, 56


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
    """The front as SVG, with a title on each point that names its deployment."""
    right, top = _end(p.tokens_per_second_per_user for p in points), _end(p.tokens_per_second_per_gpu for p in points)
    inner_width, inner_height = _SVG_WIDTH - 2 * _MARGIN, _SVG_HEIGHT - 2 * _MARGIN

    def place(point: FrontPoint) -> tuple[float, float]:
        return (
            _MARGIN + point.tokens_per_second_per_user / right * inner_width,
            _SVG_HEIGHT - _MARGIN - point.tokens_per_second_per_gpu / top * inner_height,
        )

    places = [place(point) for point in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places))
    circles = "\n".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{"#1f77b4" if point.meets_limits else "#bbbbbb"}">'
        f"<title>{escape(_name(point))}</title></circle>"
        for point, (x, y) in zip(points, places, strict=True)
    )
    base, left = _SVG_HEIGHT - _MARGIN, _MARGIN
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SVG_WIDTH} {_SVG_HEIGHT}">
<style>text {{ font-family: sans-serif; font-size: 12px }}</style>
<rect width="100%" height="100%" fill="white"/>
<text x="{left}" y="24">{escape(title)}</text>
<path d="M{left} {_MARGIN}V{base}H{_SVG_WIDTH - _MARGIN}" fill="none" stroke="black"/>
<text x="{left}" y="{_MARGIN - 8}">{top:,.0f} tokens/s of a GPU</text>
<text x="{_SVG_WIDTH - _MARGIN}" y="{base + 18}" text-anchor="end">{right:,.0f} tokens/s of a user</text>
<text x="{left}" y="{base + 18}">0</text>
<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-opacity="0.4"/>
{circles}
<text x="{left}" y="{_SVG_HEIGHT - 12}">blue: meets every limit; gray: does not</text>
</svg>
"""


def _name(point: FrontPoint) -> str:
    rates = f"{point.tokens_per_second_per_user:.1f} of a user, {point.tokens_per_second_per_gpu:.1f} of a GPU"
    return f"{point.num_gpus}x{point.hardware} {point.layout}, {point.quantization} weights: tokens/s {rates}"


def _end(values: Iterable[float]) -> float:
    """The end of an axis: the largest value rounded up to two digits."""
    largest = max(values)
    digits = 10.0 ** (ceil(log10(largest)) - 2)
    return float(ceil(largest / digits) * digits)
