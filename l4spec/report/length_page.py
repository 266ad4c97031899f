"""Right answers against the length of the text, drawn and as a table, and the length at which each variant breaks."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from l4spec.errors import UserError
from l4spec.report.charts import level_chart
from l4spec.report.page import Bar, Bars, Figure, Lines, Section, Table
from l4spec.report.templating import figure_svg

if TYPE_CHECKING:
    from l4spec.training.recipe.metrics import PhaseResult

RELIABLE = 0.9
"""Share of right answers from which a length counts as read."""
Runs = Mapping[tuple[str | None, int], Sequence["PhaseResult"]]
_Shares = dict[int, list[float]]


def length_section(name: str, runs: Runs) -> Section | None:
    """Right answers by length of each variant and phase, drawn after the last; None without a length test."""
    curves = {
        (variant, phase): shares
        for variant in dict.fromkeys(variant for variant, _ in runs)
        for phase, shares in _curves(runs, variant).items()
    }
    if not any(curves.values()):
        return None
    last = {variant: (phase, shares) for (variant, phase), shares in curves.items() if shares}
    lengths = sorted({length for _, shares in last.values() for length in shares})
    longest = {(variant, one.name): one.longest for (variant, _), phases in runs.items() for one in phases}
    rows = tuple(
        (variant or name, phase, f"{longest[variant, phase]:,}", *(_cell(shares.get(length, [])) for length in lengths))
        for (variant, phase), shares in curves.items()
    )
    table = Table(("", "after", "trained to", *(f"{length:,}" for length in lengths)), rows, "llr")
    series = [
        (variant or name, [(float(length), fmean(given)) for length, given in sorted(shares.items())])
        for variant, (_, shares) in last.items()
    ]
    trained = sorted({one.longest for phases in runs.values() for one in phases})
    chart = level_chart(
        series, lengths, trained, "tokens of a document; up: right answers; dashed: contexts trained on"
    )
    breaks = [_break(variant or name, shares, longest[variant, phase]) for variant, (phase, shares) in last.items()]
    figure = Figure(" ".join(breaks), table, "chart.svg.j2", {"chart": chart})
    bars = [Bar(f"{each} {x:,.0f}", f"{y:.0%}", round(1000 * y)) for each, points in series for x, y in points]
    return Section(
        f"{name}: right answers by tokens of the document",
        (figure, Lines(("A guess is right one time in five.",)), Bars(tuple(bars), 1000)),
    )


def length_svg(name: str, runs: Runs) -> str:
    """The curves as a picture of their own. Raises UserError without jinja2, and without a length test."""
    section = length_section(name, runs)
    if section is None:
        raise UserError(f"{name}: no phase was run, so no length was asked at")
    return figure_svg(section)


def _curves(runs: Runs, variant: str | None) -> dict[str, _Shares]:
    """By phase and length, the share of right answers of every seed."""
    curves: dict[str, _Shares] = {}
    for (name, _), phases in runs.items():
        for phase in phases if name == variant else ():
            shares = curves.setdefault(phase.name, {})
            for score in phase.lengths:
                shares.setdefault(score.tokens, []).append(score.right)
    return curves


def _cell(values: Sequence[float]) -> str:
    """The mean in percent, and with several seeds their deviation."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.0%}"
    return f"{fmean(values):.0%} +- {100 * stdev(values):.0f}"


def _break(name: str, shares: _Shares, trained: int) -> str:
    """The sentence on where a variant breaks: the first length at which less than `RELIABLE` is right."""
    lengths = sorted(shares)
    broken = next((length for length in lengths if length >= trained and fmean(shares[length]) < RELIABLE), None)
    if broken is None:
        return f"{name}: {RELIABLE:.0%} right or more at all lengths from {trained:,} to {lengths[-1]:,}."
    share = _cell(shares[broken])
    if broken == trained:
        return f"{name}: has not learned to read {broken:,} tokens, the longest trained on ({share} right)."
    return f"{name}: breaks at {broken:,} tokens, {broken / trained:g} times the longest trained on ({share} right)."


__all__ = ["RELIABLE", "length_section", "length_svg"]
