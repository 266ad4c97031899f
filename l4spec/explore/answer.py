"""Responses to the page: the plan of a variant beside that of the model that it changes, row by row."""

from collections.abc import Callable
from typing import Any

from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.latency import latency_facts
from l4spec.report.plan_page import estimate_notes, marks_of, verdict
from l4spec.report.quantities import Figures, difference, per_second, usd, whole
from l4spec.units import gib
from planners.latency_types import Latency
from planners.plan_types import Plan

NOT_SENT = {"suggestions", "layouts", "illegal_layouts"}
"""Keys of a plan that the page does not show: suggestions take many plans, and layouts may be thousands."""
Number = int | float | None
Value = tuple[str, Number]
Row = tuple[str, Callable[[LayerGraph, Plan], Value]]


def rows(variant: tuple[LayerGraph, Plan], parent: tuple[LayerGraph, Plan] | None) -> list[dict[str, str]]:
    """Label, value, the parent's value and the change of each number; `-` for unknown ones."""
    shown = []
    for label, value_of in _ROWS:
        text, number = value_of(*variant)
        before, number_before = ("-", None) if parent is None else value_of(*parent)
        shown.append({"label": label, "value": text, "parent": before, "change": _change(number, number_before)})
    return shown


def memory(plan: Plan) -> list[dict[str, Any]]:
    """Terms of the fullest device: label, size in words, and the share of the longest bar, 0 to 1."""
    device, figures = plan.memory_per_device, marks_of(plan).work
    longest = max(device.capacity_bytes or 0, device.total_bytes, 1)
    terms = [(term.name.replace("_", " "), term.bytes, False) for term in device.terms]
    if device.headroom_bytes is not None and device.headroom_bytes > 0:
        terms.append(("free", device.headroom_bytes, True))
    return [
        {"label": label, "value": figures.gib(size), "share": size / longest, "hollow": hollow}
        for label, size, hollow in terms
    ]


def notes(plan: Plan) -> list[str]:
    """Sources and assumptions of the numbers, in sentences."""
    facts = [f"{label}: {text}" for label, text in latency_facts(plan) if label in ("TTFT", "TPOT", "time", "caution")]
    return [*plan.reasons[1:], *facts, *estimate_notes(plan.estimated, plan.estimates)]


def suggestions(plan: Plan) -> str:
    """Changes that would make it fit, each with the memory of the fullest device."""
    if plan.fits is not False:
        return "It fits."
    figures = marks_of(plan).work
    lines = [f"{each.change}: {figures.gib(each.total_bytes)} on the fullest GPU" for each in plan.suggestions]
    nothing = "No change of KV dtype, weights, context or number of GPUs, alone or two together, makes it fit."
    return "\n".join(lines) or nothing


def headline(plan: Plan) -> str:
    """The verdict in one sentence."""
    return verdict(plan)


def _change(now: Number, before: Number) -> str:
    if now is None or before is None:
        return "-"
    if not before:
        return "0 %" if not now else "new"
    return difference(now / before - 1)


def _count(number: Callable[[Plan], int]) -> Callable[[LayerGraph, Plan], Value]:
    return lambda graph, plan: (marks_of(plan).sizes.count(number(plan)), number(plan))


def _bytes(number: Callable[[Plan], int]) -> Callable[[LayerGraph, Plan], Value]:
    return lambda graph, plan: (marks_of(plan).work.gib(number(plan)), number(plan))


def _limit(number: Callable[[Plan], int | None]) -> Callable[[LayerGraph, Plan], Value]:
    def value(graph: LayerGraph, plan: Plan) -> Value:
        limit = number(plan)
        return ("-", None) if limit is None else (marks_of(plan).work.whole(limit), limit)

    return value


def _timed(
    number: Callable[[Latency], float | None], written: Callable[[Figures, float], str]
) -> Callable[[LayerGraph, Plan], Value]:
    """A time, or a number derived from it; none if the plan does not fit."""

    def value(graph: LayerGraph, plan: Plan) -> Value:
        timed = None if plan.latency is None or plan.fits is False else number(plan.latency)
        return ("-", None) if timed is None else (written(marks_of(plan).work, timed), timed)

    return value


def _layers(graph: LayerGraph, plan: Plan) -> Value:
    return whole(graph.num_layers), graph.num_layers


def _capacity(graph: LayerGraph, plan: Plan) -> Value:
    capacity = plan.memory_per_device.capacity_bytes
    return ("-", None) if capacity is None else (gib(capacity), capacity)


def _fits(graph: LayerGraph, plan: Plan) -> Value:
    return {True: "yes", False: "no", None: "-"}[plan.fits], None


def _layout(graph: LayerGraph, plan: Plan) -> Value:
    return str(plan.layout), None


_ROWS: tuple[Row, ...] = (
    ("layers", _layers),
    ("parameters", _count(lambda plan: plan.params.total)),
    ("active per token", _count(lambda plan: plan.params.active)),
    ("weights", _bytes(lambda plan: plan.weights.bytes)),
    ("KV cache, all users", _bytes(lambda plan: plan.kv_cache.bytes)),
    ("fits", _fits),
    ("fullest GPU needs", _bytes(lambda plan: plan.memory_per_device.total_bytes)),
    ("of", _capacity),
    ("layout", _layout),
    ("longest context that fits", _limit(lambda plan: plan.max_context)),
    ("most users that fit", _limit(lambda plan: plan.max_batch)),
    ("TTFT", _timed(lambda latency: latency.ttft_seconds, Figures.seconds)),
    ("TPOT", _timed(lambda latency: latency.time_per_output_token_seconds, Figures.seconds)),
    (
        "tokens/s per user",
        _timed(lambda latency: latency.tokens_per_second_per_user, lambda f, v: f.mark + per_second(v)),
    ),
    (
        "tokens/s per GPU",
        _timed(lambda latency: latency.tokens_per_second_per_gpu, lambda f, v: f.mark + per_second(v)),
    ),
    (
        "$ per million output tokens",
        _timed(lambda latency: latency.usd_per_million_output_tokens, lambda f, v: f.mark + usd(v)),
    ),
)
"""Rows of the page, in order."""
