"""Accuracy in pictures: published measurements against predictions, a chart for each quantity."""

from collections import defaultdict
from collections.abc import Sequence

from l4spec.report.charts import TOP, Caption, Chart, Dot, decades
from l4spec.report.templating import render
from planners.evidence.replay import Prediction, replay
from planners.evidence.rows import published_rows
from planners.evidence.summary import quantity_of

FEWEST_ROWS = 20
"""A quantity with fewer replayed rows in one unit has no chart; its rows are in the tables."""
BAND = 1.25
"""The factor between the diagonal and each dashed line."""
_SPLITS = {"calibrate": "factors were fitted on", "test": "took no part in fits"}
_STYLES = {"calibrate": "c1 open", "test": "c0"}
_HEIGHT, _LEGEND = 520, 622


def accuracy_plots() -> dict[str, str]:
    """The page and its charts by their paths in the site."""
    groups: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for prediction in replay(published_rows()):
        if prediction.error is not None and prediction.predicted:
            groups[quantity_of(prediction), prediction.row.unit].append(prediction)
    charts = {key: rows for key, rows in sorted(groups.items()) if len(rows) >= FEWEST_ROWS}
    files = {_name(*key): _drawn(*key, rows) for key, rows in charts.items()}
    return {"accuracy-plots.md": _page(charts), **files}


def _name(quantity: str, unit: str) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in f"{quantity}-{unit}".lower())
    return f"accuracy/{words}.svg"


def _about(quantity: str, rows: Sequence[Prediction]) -> str:
    parts = []
    for split, text in _SPLITS.items():
        errors = [row.error or 0.0 for row in rows if row.row.split == split]
        near = sum(1 / BAND <= 1 + error <= BAND for error in errors)
        parts.append(f"{near} of {len(errors)} that {text}")
    return f"{quantity}, predicted against published; within a factor of {BAND} are {' and '.join(parts)}"


def _power(exponent: float) -> str:
    return f"{10.0**exponent:,.9g}"


def _drawn(quantity: str, unit: str, rows: Sequence[Prediction]) -> str:
    """The chart of one quantity: logarithmic axes in its unit, the diagonal, and a dot for each row."""
    values = [value for row in rows for value in (row.row.published, row.predicted or 0.0)]
    span = decades(values)
    chart = Chart(span, span, height=_HEIGHT)
    chart.axes(f"published, {unit}", "predicted", _power, _power)
    low, high = 10.0 ** span[0], 10.0 ** span[1]
    chart.line([(low, low), (high, high)], "roof")
    chart.line([(low, low * BAND), (high / BAND, high)], "mark")
    chart.line([(low * BAND, low), (high, high / BAND)], "mark")
    for row in sorted(rows, key=lambda each: each.row.split):
        x, y = chart.place(row.row.published, row.predicted or 0.0)
        chart.dots.append(Dot(x, y, _STYLES[row.row.split], f"{row.row.id} {row.row.model}: {row.error:+.1%}"))
    for number, (split, text) in enumerate(_SPLITS.items()):
        count = sum(row.row.split == split for row in rows)
        y = TOP + 6 + 17 * number
        chart.dots.append(Dot(_LEGEND, y, _STYLES[split], text))
        chart.texts.append(Caption(_LEGEND + 12, y + 4, f"{text} ({count} rows)"))
    return render("chart.svg.j2", about=_about(quantity, rows), chart=chart)


def _page(charts: dict[tuple[str, str], list[Prediction]]) -> str:
    lines = [
        "# Accuracy in pictures",
        "",
        "For anyone who wants to see at a glance how far estimates are from measurements: one dot per published row,",
        "on the diagonal if prediction and measurement agree. Dashed lines are a factor of",
        f"{BAND} away. Open circles are rows that factors were fitted on; full ones took no part.",
        "[Accuracy](accuracy.md) has every row with its source, its error, and the medians.",
    ]
    for (quantity, unit), rows in charts.items():
        lines += ["", f"## {quantity[0].upper()}{quantity[1:]}, {unit}", ""]
        about = _about(quantity, rows)
        lines += [f"![{about}]({_name(quantity, unit)})", "", f"{about[0].upper()}{about[1:]}."]
    return "\n".join(lines) + "\n"
