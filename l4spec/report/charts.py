"""Charts: lines, points under a roof, spans with their error, and curves over time, placed in whole pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log, log10

WIDTH, HEIGHT = 820, 330
LEFT, RIGHT, TOP, BOTTOM = 84, 210, 14, 44
COLORS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Stroke:
    """A path of straight pieces; color by class, distinguished without color by its dashes."""

    points: str
    style: str
    dash: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with its description."""

    x: int
    y: int
    style: str
    about: str


@dataclass(frozen=True, slots=True)
class Caption:
    """A text at its baseline."""

    x: int
    y: int
    text: str
    anchor: str = "start"


@dataclass(slots=True)
class Chart:
    """Contents of a chart; `x` and `y` are the exponents of ten that an axis spans."""

    x: tuple[int, int]
    y: tuple[int, int] = (0, 1)
    width: int = WIDTH
    height: int = HEIGHT
    lines: list[Stroke] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    texts: list[Caption] = field(default_factory=list)

    def place(self, x: float, y: float) -> tuple[int, int]:
        """The pixel of a point; points outside the axes are drawn on their edge."""
        across = (log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        inner = self.height - TOP - BOTTOM
        right, top = min(max(across, 0.0), 1.0), min(max(up, 0.0), 1.0)
        return LEFT + round(right * (self.width - LEFT - RIGHT)), TOP + round((1 - top) * inner)

    def line(self, points: Sequence[Point], style: str, dash: str = "") -> None:
        """A polyline through points of the data."""
        self.lines.append(Stroke(" ".join("{},{}".format(*self.place(*point)) for point in points), style, dash))

    def axes(self, x_label: str, y_label: str, x_text: Callable[[int], str], y_text: Callable[[int], str]) -> None:
        """A grid line and a text at each power of ten (or every few), and both labels."""
        bottom = self.height - BOTTOM
        for power in _powers(self.x):
            x, _ = self.place(10.0**power, 10.0 ** self.y[0])
            self.lines.append(Stroke(f"{x},{TOP} {x},{bottom}", "grid"))
            self.texts.append(Caption(x, bottom + 16, x_text(power), "middle"))
        for power in _powers(self.y):
            _, y = self.place(10.0 ** self.x[0], 10.0**power)
            self.lines.append(Stroke(f"{LEFT},{y} {self.width - RIGHT},{y}", "grid"))
            self.texts.append(Caption(LEFT - 6, y + 4, y_text(power), "end"))
        self.texts.append(Caption(LEFT, self.height - 8, f"{x_label}; up: {y_label}"))


def _powers(span: tuple[int, int]) -> range:
    return range(span[0], span[1] + 1, max(1, ceil((span[1] - span[0]) / 8)))


def time_chart(series: Sequence[tuple[str, Sequence[Point]]], end: float, text: Callable[[float], str]) -> Chart:
    """Shares from 0 to 1 over the seconds from 0 to `end`, on plain axes, with a legend at the right."""
    chart = Chart((0, 1))
    _plain_axes(chart, "time; up: share of the largest", lambda share: text(end * share), lambda y: f"{100 * y:.0f} %")
    for number, (_, points) in enumerate(series):
        pixels = (_plain_place(chart, x / end, y) for x, y in points)
        style, dash = f"c{number % COLORS}", _DASHES[number % len(_DASHES)]
        chart.lines.append(Stroke(" ".join(f"{x},{y}" for x, y in pixels), style, dash))
    _legend(chart, series)
    return chart


def shares_within(
    series: Sequence[tuple[str, Sequence[Point]]], marks: Sequence[tuple[str, float]], text: Callable[[float], str]
) -> Chart:
    """(seconds, share from 0 to 1) over seconds on a logarithmic axis; a dashed line with its text at each mark."""
    times = [x for _, points in series for x, _ in points] + [x for _, x in marks]
    chart = Chart(decades(times))
    chart.axes("", "", lambda power: text(10.0**power), str)
    chart.texts = [one for one in chart.texts if one.anchor == "middle"]
    chart.lines = chart.lines[: len(chart.texts)]  # those of the shares follow

    def place(x: float, y: float) -> tuple[int, int]:
        return chart.place(max(x, 10.0 ** chart.x[0]), 1)[0], _plain_place(chart, 0.0, y)[1]

    for quarter in range(5):
        _, y = _plain_place(chart, 0.0, quarter / 4)
        chart.lines.append(Stroke(f"{LEFT},{y} {chart.width - RIGHT},{y}", "grid"))
        chart.texts.append(Caption(LEFT - 6, y + 4, f"{25 * quarter} %", "end"))
    for row, (name, at) in enumerate(marks):
        (x, bottom), (_, top) = place(at, 0.0), place(at, 1.0)
        chart.lines.append(Stroke(f"{x},{top} {x},{bottom}", "mark"))
        chart.texts.append(Caption(x + 4, bottom - 6 - 13 * row, name))
    for number, (_, points) in enumerate(series):
        pixels = (place(*point) for point in points)
        style, dash = f"c{number % COLORS}", _DASHES[number % len(_DASHES)]
        chart.lines.append(Stroke(" ".join(f"{x},{y}" for x, y in pixels), style, dash))
    chart.texts.append(Caption(LEFT, chart.height - 8, "time; up: share of requests within it"))
    _legend(chart, series)
    return chart


@dataclass(frozen=True, slots=True)
class TimeBar:
    """A row of a timeline: (begin, end) in seconds of each part, in the order of the legend."""

    name: str
    parts: tuple[tuple[float, float], ...]


def time_bars(rows: Sequence[TimeBar], parts: Sequence[str], text: Callable[[float], str]) -> Chart:
    """Rows of bars from 0 to the last end; the parts differ in color and, for print, in thickness. An empty name of a
    part leaves it out of the legend."""
    height = TOP + BOTTOM + 14 * max(len(rows), 4)
    chart, end = Chart((0, 1), height=height), max((row.parts[-1][1] for row in rows), default=0.0) or 1.0
    for quarter in range(5):
        x, bottom = _plain_place(chart, quarter / 4, 0.0)
        chart.lines.append(Stroke(f"{x},{TOP} {x},{bottom}", "grid"))
        chart.texts.append(Caption(x, bottom + 16, text(end * quarter / 4), "middle"))
    for number, row in enumerate(rows):
        y = TOP + 7 + 14 * number
        chart.texts.append(Caption(LEFT - 8, y + 4, row.name[:13], "end"))
        for part, (begin, until) in enumerate(row.parts):
            left, right = (_plain_place(chart, at / end, 0.0)[0] for at in (begin, until))
            if until > begin:
                chart.lines.append(Stroke(f"{left},{y} {max(right, left + 1)},{y}", _BAR_STYLES[part]))
    x = chart.width - RIGHT + 12
    for row_number, (style, name) in enumerate(
        (style, name) for style, name in zip(_BAR_STYLES, parts, strict=True) if name
    ):
        y = TOP + 10 + 17 * row_number
        chart.lines.append(Stroke(f"{x},{y - 4} {x + 26},{y - 4}", style))
        chart.texts.append(Caption(x + 32, y, name))
    chart.texts.append(Caption(LEFT, chart.height - 8, "time"))
    return chart


_BAR_STYLES = ("mark", "slab c1", "slab broad c0")


@dataclass(frozen=True, slots=True)
class UprightAxis:
    """A plain upright axis: its ends, and how a value is written at it."""

    low: float
    high: float
    text: Callable[[float], str]

    def share(self, value: float) -> float:
        """Position of a value along the axis, from 0 (bottom) to 1 (top)."""
        return (value - self.low) / (self.high - self.low)


PERCENT = UprightAxis(0.0, 1.0, lambda share: f"{100 * share:.0f} %")


def level_chart(
    series: Sequence[tuple[str, Sequence[Point]]],
    ticks: Sequence[float],
    marks: Sequence[float],
    label: str,
    level: UprightAxis = PERCENT,
) -> Chart:
    """Values over a logarithmic axis with a text at each tick; dashed lines at the marks. Shares of a whole as such."""
    chart, span = Chart((0, 1)), log(max(ticks[-1] / ticks[0], 2.0))

    def place(x: float, y: float) -> tuple[int, int]:
        return _plain_place(chart, min(max(log(x / ticks[0]) / span, 0.0), 1.0), y)

    def write(x: float) -> str:
        return f"{x:,.0f}" if x >= 10 else f"{x:g}"

    for tick in ticks:
        x, bottom = place(tick, 0.0)
        chart.lines.append(Stroke(f"{x},{TOP} {x},{bottom}", "grid"))
        chart.texts.append(Caption(x, bottom + 16, write(tick), "middle"))
    for quarter in range(5):
        (left, y), (right, _) = place(ticks[0], quarter / 4), _plain_place(chart, 1.0, 0.0)
        chart.lines.append(Stroke(f"{left},{y} {right},{y}", "grid"))
        value = level.low + (level.high - level.low) * quarter / 4
        chart.texts.append(Caption(LEFT - 6, y + 4, level.text(value), "end"))
    for mark in marks:
        x, bottom = place(mark, 0.0)
        chart.lines.append(Stroke(f"{x},{TOP} {x},{bottom}", "mark"))
    for number, (name, points) in enumerate(series):
        style, places = f"c{number % COLORS}", [place(x, level.share(y)) for x, y in points]
        chart.lines.append(Stroke(" ".join(f"{x},{y}" for x, y in places), style, _DASHES[number % len(_DASHES)]))
        for (x, y), (at, value) in zip(places, points, strict=True):
            chart.dots.append(Dot(x, y, style, f"{name}, {write(at)}: {level.text(value)}"))
    chart.texts.append(Caption(LEFT, chart.height - 8, label))
    _legend(chart, series)
    return chart


def front_chart(points: Sequence[tuple[str, float, float, bool]], ends: Point, label: str) -> Chart:
    """(name, x, y, filled) on plain axes from 0 to `ends`, numbered in their order and joined by a line."""
    chart = Chart((0, 1))
    _plain_axes(chart, label, lambda share: f"{ends[0] * share:,.0f}", lambda share: f"{ends[1] * share:,.0f}")
    places = [_plain_place(chart, x / ends[0], y / ends[1]) for _, x, y, _ in points]
    chart.lines.append(Stroke(" ".join(f"{x},{y}" for x, y in places), "mark"))
    for (name, _, _, filled), (x, y) in zip(points, places, strict=True):
        chart.dots.append(Dot(x, y, "c0" if filled else "c1 open", name))
    chart.texts += _numbers(places, -7)
    right = chart.width - RIGHT + 12
    for row, (style, text) in enumerate((("c0", "meets every limit"), ("c1 open", "does not"))):
        chart.dots.append(Dot(right + 5, TOP + 6 + 17 * row, style, text))
        chart.texts.append(Caption(right + 16, TOP + 10 + 17 * row, text))
    return chart


def _plain_place(chart: Chart, x: float, y: float) -> tuple[int, int]:
    """The pixel of shares of both axes."""
    inner, height = chart.width - LEFT - RIGHT, chart.height - TOP - BOTTOM
    return LEFT + round(x * inner), TOP + round((1 - y) * height)


def _plain_axes(chart: Chart, label: str, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> None:
    """A grid line and a text at each quarter of both axes."""
    right, bottom = chart.width - RIGHT, chart.height - BOTTOM
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _plain_place(chart, share, share)
        chart.lines += [Stroke(f"{x},{TOP} {x},{bottom}", "grid"), Stroke(f"{LEFT},{y} {right},{y}", "grid")]
        chart.texts.append(Caption(x, bottom + 16, x_text(share), "middle"))
        chart.texts.append(Caption(LEFT - 6, y + 4, y_text(share), "end"))
    chart.texts.append(Caption(LEFT, chart.height - 8, label))


def _numbers(places: Sequence[tuple[int, int]], below: int) -> list[Caption]:
    """The number of each dot beside it, so many pixels below its middle; dots that nearly touch share a text."""
    at: dict[tuple[int, int], list[str]] = {}
    for number, (x, y) in enumerate(places, 1):
        near = next((place for place in at if abs(place[0] - x) < 12 and abs(place[1] - y) < 12), (x, y))
        at.setdefault(near, []).append(str(number))
    return [Caption(x + 9, y + below, ", ".join(numbers)) for (x, y), numbers in at.items()]


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The exponents of ten that hold all positive values, at least one decade."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)))
    return low, max(high, low + 1)


def line_chart(series: Sequence[tuple[str, Sequence[Point]]], x_label: str, y_label: str, texts: "Texts") -> Chart:
    """Series of (x, y) as lines, with a legend at the right in the order of their ends; zeros are left out."""
    points = [point for _, each in series for point in each if point[1] > 0]
    chart = Chart(decades([x for x, _ in points]), decades([y for _, y in points]))
    chart.axes(x_label, y_label, texts.x, texts.y)
    for number, (_, each) in enumerate(series):
        chart.line([p for p in each if p[1] > 0], f"c{number % COLORS}", _DASHES[number % len(_DASHES)])
    _legend(chart, series)
    return chart


@dataclass(frozen=True, slots=True)
class Texts:
    """Functions that format the powers of ten on each axis."""

    x: Callable[[int], str]
    y: Callable[[int], str]


def _legend(chart: Chart, series: Sequence[tuple[str, Sequence[Point]]]) -> None:
    ends = sorted((-(each[-1][1] if each else 0), number) for number, (_, each) in enumerate(series))
    x = chart.width - RIGHT + 12
    for row, (_, number) in enumerate(ends):
        y = TOP + 10 + 17 * row
        style, dash = f"c{number % COLORS}", _DASHES[number % len(_DASHES)]
        chart.lines.append(Stroke(f"{x},{y - 4} {x + 26},{y - 4}", style, dash))
        chart.texts.append(Caption(x + 32, y, series[number][0][:34]))


def roofline(points: Sequence[tuple[str, float, float, int]]) -> Chart:
    """(name, intensity by that of the ridge, share of the peak, color) under the roof that nothing exceeds."""
    chart = Chart(decades([0.1, 10.0, *(p[1] for p in points)]), decades([0.1, 1.0, *(p[2] for p in points)]))
    percent = lambda power: f"{10.0 ** (power + 2):g} %"  # noqa: E731
    chart.axes("arithmetic intensity / that of the ridge", "share of the peak", lambda p: f"{10.0**p:g}", percent)
    low, high = 10.0 ** chart.x[0], 10.0 ** chart.x[1]
    chart.line([(max(low, 10.0 ** chart.y[0]), max(low, 10.0 ** chart.y[0])), (1.0, 1.0), (high, 1.0)], "roof")
    for number, (name, intensity, share, color) in enumerate(points, 1):
        x, y = chart.place(intensity, share)
        chart.dots.append(Dot(x, y, f"c{color}", name))
        chart.texts.append(Caption(chart.width - RIGHT + 12, TOP + 10 + 15 * number, f"{number} {name}"[:34]))
    chart.texts += _numbers([(dot.x, dot.y) for dot in chart.dots], 14)
    chart.height = max(HEIGHT, TOP + 30 + 15 * len(points))
    return chart


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """A time: the bound that nothing beats, the estimate, and where 90 % of the errors seen put the truth."""

    name: str
    bound: float
    estimate: float | None
    low: float | None
    high: float | None


def spans(rows: Sequence[TimeSpan], text: Callable[[float], str]) -> Chart:
    """A row a time on one logarithmic axis: a bar for the error, a dot for the estimate, a tick for the bound."""
    values = [v for row in rows for v in (row.bound, row.estimate, row.low, row.high) if v]
    chart = Chart(decades(values), height=TOP + BOTTOM + 34 * len(rows))
    chart.axes("", "", lambda power: text(10.0**power), str)
    chart.texts = [one for one in chart.texts if one.anchor != "end"]
    chart.texts[-1] = Caption(LEFT, chart.height - 8, "bar: 90 % of the errors seen; dot: estimate; tick: bound")
    for number, row in enumerate(rows):
        y, style = TOP + 17 + 34 * number, f"c{number % COLORS}"
        chart.texts.append(Caption(LEFT - 8, y + 4, row.name, "end"))
        if row.low and row.high:
            low, high = chart.place(row.low, 1)[0], chart.place(row.high, 1)[0]
            chart.lines.append(Stroke(f"{low},{y} {high},{y}", f"span {style}"))
        bound = chart.place(row.bound, 1)[0]
        chart.lines.append(Stroke(f"{bound},{y - 10} {bound},{y + 10}", style))
        if row.estimate:
            chart.dots.append(Dot(chart.place(row.estimate, 1)[0], y, style, f"{row.name}: {text(row.estimate)}"))
        shown = text(row.estimate) if row.estimate else f"at least {text(row.bound)}"
        chart.texts.append(Caption(chart.width - RIGHT + 12, y + 4, shown))
    return chart


__all__ = [
    "Chart",
    "Texts",
    "TimeBar",
    "TimeSpan",
    "UprightAxis",
    "front_chart",
    "level_chart",
    "line_chart",
    "roofline",
    "shares_within",
    "spans",
    "time_bars",
]
