"""The picture of docs/calibrate.md: predicted against measured time, drawn from the CSV file of `predict_time`.

python -m benchmarks.predict_plot docs/calibrate.csv docs/calibrate.svg
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

BANDS = ((0.25, "#eee"), (0.10, "#dcdcdc"))
"""Errors within which nine tenths and half of the points should be, the wider band first."""
COLOURS = {"prefill": "#1f6fb4", "decode": "#d1571b"}
SIDE, MARGIN = 480, 60


@dataclass(frozen=True, slots=True)
class Scale:
    """Milliseconds to pixels, the same on both axes: whole powers of ten at the ends."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """The least powers of ten that hold all values."""
        return cls(floor(log10(min(values))), ceil(log10(max(values))))

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return MARGIN + SIDE * (log10(value) - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return MARGIN + SIDE - (self.x(value) - MARGIN)


def draw(points: Path, picture: Path) -> None:
    """Both axes in milliseconds, logarithmic; the diagonal is a perfect prediction."""
    with points.open(encoding="utf-8") as file:
        head = file.readline().strip("# \n")
        rows = list(csv.DictReader(file))
    values = [float(row[key]) for row in rows for key in ("measured_ms", "predicted_ms")]
    size = SIDE + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" font-size="11">',
        f'<rect width="{size}" height="{size}" fill="white"/>',
        *_axes(Scale.over(values)),
        *_points(rows, Scale.over(values)),
        _text(MARGIN, 22, f"Predicted and measured time of {len(rows) // 2} random models; bands: 10 % and 25 %"),
        _text(MARGIN, 40, head, size=7),
        "</svg>",
    ]
    picture.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _axes(scale: Scale) -> Iterator[str]:
    low, high = 10.0**scale.low, 10.0**scale.high
    yield f'<clipPath id="inside"><rect x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}"/></clipPath>'
    for limit, colour in BANDS:
        ends = ((low, 1 + limit), (high, 1 + limit), (high, 1 - limit), (low, 1 - limit))
        corners = " ".join(f"{scale.x(x):.1f},{scale.y(x * factor):.1f}" for x, factor in ends)
        yield f'<polygon points="{corners}" fill="{colour}" clip-path="url(#inside)"/>'
    yield f'<path d="M{scale.x(low)} {scale.y(low)}L{scale.x(high)} {scale.y(high)}" stroke="#555"/>'
    for power in range(scale.low, scale.high + 1):
        at, label = 10.0**power, f"{10.0**power:g}"
        yield f'<path d="M{scale.x(at):.1f} {MARGIN}v{SIDE}M{MARGIN} {scale.y(at):.1f}h{SIDE}" stroke="#ccc"/>'
        yield _text(scale.x(at), MARGIN + SIDE + 16, label, anchor="middle")
        yield _text(MARGIN - 6, scale.y(at) + 4, label, anchor="end")
    yield _text(MARGIN + SIDE / 2, MARGIN + SIDE + 36, "measured, ms", anchor="middle")
    middle = MARGIN + SIDE / 2
    yield f'<g transform="rotate(-90 18 {middle})">{_text(18, middle, "predicted, ms", anchor="middle")}</g>'


def _points(rows: Sequence[dict[str, str]], scale: Scale) -> Iterator[str]:
    for row in rows:
        x, y = scale.x(float(row["measured_ms"])), scale.y(float(row["predicted_ms"]))
        title = f"{row['phase']} of model {row['model']}: {row['what']}"
        circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[row["phase"]]}" fill-opacity="0.75">'
        yield f"{circle}<title>{title}</title></circle>"
    for number, (phase, colour) in enumerate(COLOURS.items()):
        y = MARGIN + 18 + 16 * number
        yield f'<circle cx="{MARGIN + 14}" cy="{y}" r="3.5" fill="{colour}"/>'
        yield _text(MARGIN + 24, y + 4, f"{phase} ({sum(row['phase'] == phase for row in rows)})")


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
