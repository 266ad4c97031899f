"""A plan in five lines, as a small HTML table, and as the texts of the command line."""

from html import escape

from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.explain import explain_page
from l4spec.report.latency import latency_facts
from l4spec.report.page import to_text
from l4spec.report.plan_detail import detail_page
from l4spec.report.plan_page import layout_in_words, marks_of, plan_page, stored_in, verdict
from l4spec.report.quantities import whole
from planners.plan_types import Plan


def report(plan: Plan, *, verbose: bool, width: int) -> str:
    """Text of `l4spec plan`."""
    page = plan_page(plan)
    return to_text(page + detail_page(plan) if verbose else page, width)


def explain(plan: Plan, graph: LayerGraph, *, width: int) -> str:
    """Text that `--explain` adds."""
    return to_text(explain_page(graph, plan), width)


def brief(plan: Plan) -> str:
    """The verdict and four lines more."""
    rows = _rows(plan)
    return "\n".join([verdict(plan), *(f"  {label:<8}  {value}" for label, value in rows)])


def table(plan: Plan) -> str:
    """The same as an HTML table, for notebooks."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(label)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for label, value in _rows(plan)
    )
    return f'<table><caption style="text-align:left">{escape(verdict(plan))}</caption>{rows}</table>'


def _rows(plan: Plan) -> tuple[tuple[str, str], ...]:
    figures, asked = marks_of(plan), plan.deployment
    sizes = figures.sizes
    totals = f"{sizes.count(plan.params.total)} parameters, {sizes.count(plan.params.active)} active"
    longest = "" if plan.max_context is None else f", longest {figures.work.whole(plan.max_context)}"
    return (
        ("model", f"{totals}, {sizes.gib(plan.weights.bytes)} {stored_in(plan)}"),
        ("context", f"{whole(asked.context)} tokens, batch {whole(asked.batch)}{longest}"),
        ("layout", layout_in_words(plan)),
        ("time", _time(plan)),
    )


def _time(plan: Plan) -> str:
    if plan.cluster is None:
        return "give gpus, and it is estimated"
    if not plan.fits:
        return "none, since it does not fit"
    facts = dict(latency_facts(plan))
    known = [f"{name} {facts[name].partition(' estimated')[0]}" for name in ("TTFT", "TPOT", "step") if name in facts]
    return "; ".join(known) or facts.get("time", "unknown")
