"""`l4spec report`: a plan on one page to send; each number with its formula, source and error one click away."""

from collections.abc import Iterator

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.report.claims_page import verify_page
from l4spec.report.drawing import about, canvas_of
from l4spec.report.explain import cache_sums, explain_page, flops_sums, parameter_sums, weight_sums
from l4spec.report.growth import growth_section
from l4spec.report.latency import error_facts, kind_table, latency_facts
from l4spec.report.page import Block, Details, Facts, Figure, Lines, Page, Section, Table
from l4spec.report.picture import FoldBox, picture_of
from l4spec.report.plan_detail import detail_page
from l4spec.report.plan_page import limit_facts, marks_of, plan_facts, plan_page, term_figures
from l4spec.report.quantities import Figures
from l4spec.report.times import roofline_section, times_figure
from l4spec.units import gib
from l4spec.verification.claims import verify
from planners.latency_types import StepLatency
from planners.plan_types import MemoryTerm, Plan


def report_page(graph: LayerGraph, plan: Plan) -> Page:
    """Verdict, costs, architecture, memory, cache growth, roofline, times, layouts, claims, and every sum."""
    answer = plan_page(plan, max_seq_len=graph.max_seq_len)
    sections = [
        answer[0],
        Section("What it costs", tuple(_costs(graph, plan))),
        Section("Architecture", (architecture(graph, plan.deployment.quantization),)),
        Section(answer[2].title, (*answer[2].blocks[:1], *memory_terms(plan))),
        *growth_section(graph, plan),
        *roofline_section(plan),
        *_times(plan),
        *(section for section in answer[3:] if section.title),
        *_layouts(plan),
        _claims(graph),
        Section("Every sum", tuple(Details(s.title, "", s.blocks) for s in explain_page(graph, plan))),
        *(section for section in answer[-1:] if not section.title and isinstance(section.blocks[0], Lines)),
    ]
    return tuple(sections)


def _costs(graph: LayerGraph, plan: Plan) -> Iterator[Block]:
    """The lines of the plan, each number opened by a click."""
    opened = {
        "model": _parameters(graph),
        "weights": Table(
            ("part", "stored as", "elements", "payload", "scales", "bytes"),
            tuple(weight_sums(graph, plan.deployment.quantization)),
            "ll",
        ),
        "kv cache": Table(("layers", "arithmetic", "bytes"), tuple(cache_sums(graph, plan)), "ll"),
        "compute": _flops(graph),
    }
    facts = list(plan_facts(plan, marks_of(plan)))
    facts += limit_facts(plan, marks_of(plan), graph.max_seq_len) if plan.cluster is not None else ()
    for label, value in facts:
        if label in opened:
            sources = Facts(tuple(("source", source) for source in _sources(graph, plan)))
            yield Details(label, value, (opened[label], Lines((_error(plan),)), sources))
        elif label in ("longest context", "largest batch"):
            yield Details(label, value, (Lines((_limit_words(plan, label),)),))
        else:
            yield Facts(((label, value),))


def _error(plan: Plan) -> str:
    if plan.estimates.work:
        return "error: none in the sum; unknown in the fields that the spec estimates"
    return "error: none, counted exactly"


def _limit_words(plan: Plan, label: str) -> str:
    what = "context at this batch" if label == "longest context" else "batch at this context"
    capacity = gib(plan.memory_per_device.capacity_bytes or 0)
    return (
        f"the largest {what} whose sum of memory terms on the fullest device, listed below, stays within {capacity} "
        f"with {plan.layout}; its error is that of the terms marked with *"
    )


def _parameters(graph: LayerGraph) -> Table:
    """Every parameter of the model, counted."""
    return Table(("part", "layers", "arithmetic", "parameters"), tuple(parameter_sums(graph)), "lll")


def _flops(graph: LayerGraph) -> Table:
    rows = flops_sums(graph, Work(1, 1), text_only=True, pairs=False)
    return Table(("layers", "arithmetic for one token, without attention", "FLOPs"), tuple(rows), "ll")


def _sources(graph: LayerGraph, plan: Plan) -> Iterator[str]:
    yield from graph.model.spec.sources or ("the spec names none",)
    if plan.estimated:
        yield f"estimated, because unpublished: {', '.join(plan.estimated)}"


def architecture(graph: LayerGraph, quantization: str | None) -> Figure:
    """The picture of a model, with its boxes as a table; weights in a scheme, by default as the spec stores them."""
    picture = picture_of(graph, quantization)
    boxes = [box for column in (picture.vision, picture.text) if column is not None for box in column.boxes]
    rows = []
    for box in boxes:
        title = ", ".join(block.title for block in box.blocks) if isinstance(box, FoldBox) else box.title
        outer = f"{box.title}: " if isinstance(box, FoldBox) and box.title else ""
        rows.append((outer + title, box.facts or "no parameters"))
    table = Table(("layers", "parameters, active share, stored bytes"), tuple(rows), "ll")
    return Figure(about(picture), table, "model.svg.j2", canvas_of(picture))


def memory_terms(plan: Plan) -> Iterator[Block]:
    """Each term of the fullest device's memory, with its formula, source and error."""
    figures = marks_of(plan)
    if any(term.origin != "exact" for term in plan.memory_per_device.terms):
        yield Lines(("* calibrated on published logs, not computed; spread and source below",))
    for term in plan.memory_per_device.terms:
        yield Details(term.name, term_figures(term, figures).gib(term.bytes), (Facts(tuple(_term(term))),))


def _term(term: MemoryTerm) -> Iterator[tuple[str, str]]:
    yield "formula", term.arithmetic or "-"
    yield "source", term.source
    if term.spread is not None:
        yield "error", f"seen between {gib(term.spread[0])} and {gib(term.spread[1])}"
    else:
        yield "error", "none, counted exactly" if term.origin == "exact" else "spread unknown"


def _times(plan: Plan) -> Iterator[Section]:
    latency, facts = plan.latency, latency_facts(plan)
    if latency is None or not facts:
        return
    figures = Figures(bool(plan.estimates.work))
    steps = {"TTFT": latency.prefill, "TPOT": latency.decode, "step": latency.train}
    origin = (
        Facts(error_facts(latency)),
        Lines((*(f"source: {one}" for one in latency.sources), *latency.cautions, *latency.notes)),
    )
    blocks: list[Block] = list(times_figure(plan))
    for label, value in facts:
        step: StepLatency | None = steps.get(label)
        if step is None:
            blocks.append(Facts(((label, value),)))
        else:
            blocks.append(Details(label, value, (kind_table(step, figures), *origin)))
    yield Section("How long it takes, and what bounds it", tuple(blocks))


def _layouts(plan: Plan) -> Iterator[Section]:
    for section in detail_page(plan):
        if section.title.startswith("Legal layouts"):
            yield section
        elif section.title == "Illegal layouts":
            yield Section("", (Details("layouts that the model does not allow", "", section.blocks),))


def _claims(graph: LayerGraph) -> Section:
    try:
        blocks = [block for section in verify_page(verify(graph)) for block in section.blocks]
    except UserError as error:
        blocks = [Lines(tuple(f"a claim cannot be computed: {problem}" for problem in error.problems))]
    return Section("Claims", tuple(blocks))


__all__ = ["architecture", "memory_terms", "report_page"]
