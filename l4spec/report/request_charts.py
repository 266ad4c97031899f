"""Charts of simulated requests: latency distributions, and a timeline of a few requests."""

from collections.abc import Iterator, Sequence

from l4spec.report.charts import TimeBar, shares_within, time_bars
from l4spec.report.page import Figure, Table
from l4spec.report.quantities import Figures, seconds, whole
from planners.simulate.requests import Request
from planners.simulate.result_types import LevelResult
from planners.simulate.scenario_plan import StagePlan

_NS = 1e9
_PERCENT = 100
_SHOWN = (10, 25, 50, 75, 90, 95, 99, 100)
SHOWN_REQUESTS = 24
"""Requests of the drawn stretch: as many rows as fit a screen."""


def latency_figure(requests: Sequence[Request], levels: Sequence[LevelResult], figures: Figures) -> Iterator[Figure]:
    """The share of finished requests within a time, for each latency; nothing if none finished."""
    done = [request for request in requests if request.outcome == "finished"]
    values = {
        "TTFT": [request.ttft / _NS for request in done],
        "TPOT": [request.tpot / _NS for request in done if request.output > 1],
        "E2E": [request.e2e / _NS for request in done],
    }
    series = [(name, list(_curve(sorted(given)))) for name, given in values.items() if given and max(given) > 0]
    if not series:
        return
    rows = tuple((name, *(figures.seconds(points[percent][0]) for percent in _SHOWN)) for name, points in series)
    marks = [(f"{level.name.upper()} {seconds(level.limit)}", level.limit) for level in levels]
    limits = f" Dashed: the service levels ({', '.join(name for name, _ in marks)})." if marks else ""
    about = (
        f"Share of {whole(len(done))} finished requests within a time: to the first token (TTFT), for each token after "
        f"it (TPOT), to the last one (E2E).{limits}"
    )
    table = Table(("", *(f"{percent} %" for percent in _SHOWN)), rows)
    yield Figure(about, table, "chart.svg.j2", {"chart": shares_within(series, marks, seconds)})


def _curve(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """(time, share of values that are at most it) at each percent; linear between ranks, as percentiles are."""
    for step in range(_PERCENT + 1):
        place = step / _PERCENT * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        yield values[low] + (values[high] - values[low]) * (place - low), step / _PERCENT


def stretch_figure(requests: Sequence[Request], figures: Figures) -> Iterator[Figure]:
    """The requests around the one that waited longest for its first token, one row each; nothing if none did."""
    served = sorted((one for one in requests if one.first_token_at >= 0), key=lambda one: (one.arrival, one.number))
    if not served:
        return
    slowest = max(range(len(served)), key=lambda index: served[index].ttft)
    first = max(0, min(slowest - SHOWN_REQUESTS // 2, len(served) - SHOWN_REQUESTS))
    shown = served[first : first + SHOWN_REQUESTS]
    begin = shown[0].arrival
    bars, rows = [], []
    for one in shown:
        marks = [(at - begin) / _NS for at in (one.arrival, one.scheduled_at, one.first_token_at, one.last_token_at)]
        scheduled = max(marks[0], marks[1])
        name = f"request {one.number}"
        bars.append(TimeBar(name, ((marks[0], scheduled), (scheduled, marks[2]), (marks[2], max(marks[2], marks[3])))))
        spans = (scheduled - marks[0], marks[2] - scheduled, marks[3] - marks[2])
        rows.append((name, seconds(marks[0]), whole(one.prompt), whole(one.output), *map(figures.seconds, spans)))
    about = (
        f"{whole(len(shown))} requests in the order of their arrival, around number {served[slowest].number}, which "
        f"waited longest for its first token ({seconds(served[slowest].ttft / _NS)}): before it is scheduled, its "
        f"prompt, its answer. Time counts from {seconds(begin / _NS)} after the start."
    )
    headers = ("", "arrives at", "prompt", "answer", "before it is scheduled", "to the first token", "answer")
    chart = time_bars(bars, ("before it is scheduled", "prompt", "answer"), seconds)
    yield Figure(about, Table(headers, tuple(rows)), "chart.svg.j2", {"chart": chart})


def stages_figure(stages: Sequence[StagePlan], figures: Figures) -> Figure:
    """One request alone through the chain; a check of a stream begins after the answer and delays nothing."""
    bars, rows, now, is_answered = [], [], 0.0, False
    for stage in stages:
        first, last = now + stage.first_token_seconds, now + stage.seconds
        bars.append(TimeBar(stage.name, ((now, now), (now, first), (first, last))))
        rows.append((stage.name, *map(figures.seconds, (now, first, last))))
        is_answered = is_answered or stage.answers
        if not (is_answered and not stage.answers and stage.check == "streaming"):
            now = last
    about = "One request alone: when each stage begins, has its first token, and ends"
    table = Table(("", "begins", "first token", "ends"), tuple(rows))
    chart = time_bars(bars, ("", "prompt, or a given time", "tokens after the first"), seconds)
    return Figure(about, table, "chart.svg.j2", {"chart": chart})


__all__ = ["SHOWN_REQUESTS", "latency_figure", "stages_figure", "stretch_figure"]
