"""`l4spec show`: a model's structure for people, with its layer pattern drawn."""

from collections.abc import Iterable, Iterator
from textwrap import wrap

from pydantic import BaseModel

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.report.about import about_sections
from l4spec.report.page import Code, Facts, Lines, Page, Section, Table
from l4spec.report.pattern import letters_for, shortest_period, summarize
from l4spec.report.quantities import Figures, whole
from l4spec.spec.estimates import EstimatedFields, estimates_of
from l4spec.spec.model import ModelSpec
from l4spec.spec.resolve import ResolvedBlock, ResolvedStack
from planners.counts.mtp import MTPCounts, count_mtp
from planners.counts.params import count_params

_STRIP_WIDTH = 64
_LONGEST_STRIP = 512
_WIDTH = 98
"""Columns of an indented section, of 100."""


def show_page(graph: LayerGraph) -> Page:
    """Name and totals, the pattern of blocks, named parts, vision, sources and estimated fields."""
    spec, estimates = graph.model.spec, estimates_of(graph.model.spec)
    figures = Figures(bool(estimates.params))
    sections = [
        Section("", (Lines((graph.name, *_wrapped((spec.description or "",)))),)),
        Section("", (Facts(_totals(graph, figures)),)),
        Section(f"Layers: {whole(graph.num_layers)}", (Code(tuple(pattern_lines(graph.model.text.stack))),)),
        Section("Parts", (_parts(graph, "text", figures),)),
        Section("Settings", (Lines(tuple(_all_settings(graph, "text"))),)),
    ]
    if (modules := count_mtp(graph)) is not None:
        sections.append(Section("Multi-token prediction", (Facts(_mtp(modules, figures)),)))
    if graph.model.vision is not None:
        sections.append(Section("Vision", (Facts(_vision(graph)),)))
        sections.append(Section("Parts of the vision model", (_parts(graph, "vision", figures),)))
        sections.append(Section("Settings of the vision model", (Lines(tuple(_all_settings(graph, "vision"))),)))
    if spec.about is not None:
        sections += about_sections(spec.about)
    if spec.estimated:
        sections.append(Section("Estimated, because unpublished", (Facts(tuple(_estimated(spec, estimates))),)))
    if spec.sources:
        sections.append(Section("Sources", (Lines(tuple(_wrapped(spec.sources))),)))
    return tuple(sections)


_EFFECTS = {
    "sizes": "changes every number (~)",
    "work": "changes FLOPs, cache, memory and time (~)",
    "none": "changes no number of a plan",
}


def _estimated(spec: ModelSpec, estimates: EstimatedFields) -> Iterator[tuple[str, str]]:
    for path in spec.estimated:
        yield path, _EFFECTS["sizes" if path in estimates.params else "work" if path in estimates.work else "none"]


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from wrap(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _totals(graph: LayerGraph, figures: Figures) -> tuple[tuple[str, str], ...]:
    params, text = count_params(graph), graph.model.text
    tied = ", tied with the head" if text.head.tied else ""
    return (
        ("parameters", f"{figures.count(params.total)} ({figures.whole(params.total)})"),
        ("active per token", f"{figures.count(params.active)} ({figures.whole(params.active)})"),
        ("hidden size", figures.whole(text.stack.width.hidden_size)),
        ("vocabulary", f"{whole(text.embedding.vocab_size)}{tied}"),
        ("longest sequence", f"{whole(text.stack.width.max_seq_len)} tokens"),
        ("published in", text.dtype),
    )


def pattern_lines(stack: ResolvedStack) -> Iterator[str]:
    """The blocks as two strips of letters, attention above feed-forward, with a summary and a legend."""
    for role in ("attention", "ffn"):
        names = [_name(block, role) for block in stack.blocks]
        letters = letters_for(names)
        strip = "".join(letters[name] for name in names)
        legend = ", ".join(f"{letters[name]} {name or 'none'}" for name in dict.fromkeys(names))
        yield f"{role:<10}{summarize(strip)}   ({legend})"
        if len(strip) <= _LONGEST_STRIP:
            yield from (f"{'':<10}{row}" for row in _rows(strip))
    forms = dict.fromkeys(block.form for block in stack.blocks)
    yield f"{'form':<10}{', '.join(forms)}"


def _rows(strip: str) -> Iterator[str]:
    """The strip in rows that end where its pattern does."""
    period = shortest_period(strip)
    width = _STRIP_WIDTH - _STRIP_WIDTH % period if period <= _STRIP_WIDTH else _STRIP_WIDTH
    yield from (strip[start : start + width] for start in range(0, len(strip), width))


def _name(block: ResolvedBlock, role: str) -> str | None:
    if role == "ffn":
        return block.ffn_name
    return None if block.attention is None else block.attention.name


def _parts(graph: LayerGraph, scope: str, figures: Figures) -> Table:
    rows = tuple(
        (
            group.first.label,
            group.first.kind,
            whole(group.count),
            figures.count(group.declaration.num_parameters),
            figures.count(group.declaration.num_active_parameters),
        )
        for group in _described(graph, scope)
    )
    return Table(("part", "kind", "count", "parameters each", "active each"), rows, "ll")


def _described(graph: LayerGraph, scope: str) -> Iterator[LayerGroup]:
    """Groups that a reader looks for: those with parameters, norms aside; tied heads among them."""
    for group in graph.groups:
        has_weights = bool(group.declaration.parameters) and "norm" not in group.first.kind
        if group.first.scope == scope and has_weights:
            yield group


def _all_settings(graph: LayerGraph, scope: str) -> Iterator[str]:
    for group in _described(graph, scope):
        yield from _wrapped((f"{group.first.label}: {describe(group.first.spec)}",))


def describe(spec: BaseModel) -> str:
    """A layer's settings that differ from their defaults, in one line."""
    return ", ".join(_settings(spec, ""))


def _settings(spec: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if name == "kind" or value is None or value == field.default:
            continue
        if isinstance(value, BaseModel):
            yield _nested(name, value)
        else:
            yield f"{prefix}{name} {_plain(value)}"


def _nested(name: str, value: BaseModel) -> str:
    inner = ", ".join(_settings(value, ""))
    kind = getattr(value, "kind", None)
    words = " ".join(part for part in (str(kind or ""), f"({inner})" if inner else "") if part)
    return f"{name} {words}".strip()


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mtp(modules: MTPCounts, figures: Figures) -> tuple[tuple[str, str], ...]:
    """Facts of the modules of multi-token prediction, which the model's own numbers exclude."""
    copies = f", and {figures.count(modules.copies)} in copies of embedding and head" if modules.copies else ""
    return (
        ("modules", whole(modules.num_modules)),
        ("parameters", f"{figures.count(modules.own)} beside the model's{copies}"),
        ("active", f"{figures.count(modules.active)} a drafted token"),
    )


def _vision(graph: LayerGraph) -> tuple[tuple[str, str], ...]:
    vision = graph.model.vision
    assert vision is not None
    patches = vision.patch_embedding
    grid = patches.image_size // patches.patch_size
    whole_image = " and the whole image as one more" if vision.global_tile else ""
    return (
        ("tile", f"{patches.image_size} px, {grid} × {grid} patches of {patches.patch_size} px"),
        ("tokens per tile", whole(vision.num_tokens_per_tile)),
        ("tiles per image", f"at most {vision.max_tiles}{whole_image}"),
        ("tower", f"{len(vision.stack.blocks)} layers of {whole(vision.stack.width.hidden_size)}"),
    )
