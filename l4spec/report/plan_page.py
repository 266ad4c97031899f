"""The answer of `l4spec plan SPEC` on one screen: fits or not, where the memory goes, what else would fit."""

from l4spec.report.latency import latency_facts
from l4spec.report.page import Bar, Bars, Block, Facts, Lines, Page, Section, Table
from l4spec.report.quantities import Figures, gib, whole
from planners.plan_types import MemoryTerm, Plan

_MOST_FIELDS = 3


def plan_page(plan: Plan, *, max_seq_len: int | None = None) -> Page:
    """Verdict first; `max_seq_len` lets it say when the model, and not memory, limits the context."""
    figures = Figures(bool(plan.estimated))
    sections = [
        Section("", (Lines((verdict(plan), *plan.reasons[1:])),)),  # the first reason is the verdict in bytes
        Section("", (Facts(_facts(plan, figures)),)),
        Section(_memory_title(plan), _memory_blocks(plan, figures)),
    ]
    if plan.cluster is not None:
        sections.append(Section("", (Facts(_limits(plan, figures, max_seq_len)),)))
    if plan.latency is not None:
        sections.append(Section("", (Facts(latency_facts(plan)),)))
    if plan.suggestions:
        sections.append(Section("What would make it fit", (_suggestions(plan, figures),)))
    elif plan.fits is False:
        nothing = "No single change of KV dtype, weights, context or number of GPUs makes it fit."
        sections.append(Section("", (Lines((nothing,)),)))
    if plan.estimated:
        sections.append(Section("", (Lines((estimated_note(plan.estimated),)),)))
    return tuple(sections)


def verdict(plan: Plan) -> str:
    """One sentence: does it fit, and by how much."""
    memory, figures = plan.memory_per_device, Figures(bool(plan.estimated))
    total = figures.gib(memory.total_bytes)
    if plan.cluster is None or memory.capacity_bytes is None or memory.headroom_bytes is None:
        devices = plan.layout.num_devices
        where = "one device" if devices == 1 else f"the fullest of {devices} devices"
        return f"{plan.model} needs {total} on {where}; give --gpus to see whether it fits"
    have, name = gib(memory.capacity_bytes), plan.cluster.text
    if plan.fits:
        free = figures.gib(memory.headroom_bytes)
        return f"{plan.model} fits on {name}: the fullest GPU needs {total} of {have} and has {free} free"
    missing = figures.gib(-memory.headroom_bytes)
    return f"{plan.model} does not fit on {name}: the fullest GPU needs {total} of {have}, {missing} too much"


def _facts(plan: Plan, figures: Figures) -> tuple[tuple[str, str], ...]:
    asked, params = plan.deployment, plan.params
    origin = "the default; change it with --context" if asked.context_origin == "default" else "as asked"
    rows = [
        ("model", f"{figures.count(params.total)} parameters, {figures.count(params.active)} active per token"),
        ("weights", f"{figures.gib(plan.weights.bytes)} in {asked.quantization}"),
        ("context", f"{whole(asked.context)} tokens ({origin}), batch {whole(asked.batch)}"),
    ]
    if asked.mode == "serve":
        cache = plan.kv_cache
        rows.append(("kv cache", f"{figures.gib(cache.bytes)} in {asked.kv_dtype}"))
        rows.append(("policy", f"{cache.policy}: {cache.policy_explained}"))
    else:
        rows.append(("training", f"{asked.optimizer}, ZeRO stage {asked.zero_stage}, {_checkpointing(plan)}"))
    if asked.num_tiles:
        rows.append(("images", f"{whole(asked.num_tiles)} tiles"))
    rows.append(("layout", _layout(plan)))
    rows.append(("compute", _compute(plan, figures)))
    return tuple(rows)


def _checkpointing(plan: Plan) -> str:
    return f"activation checkpointing {plan.deployment.activation_checkpointing}"


def _layout(plan: Plan) -> str:
    if plan.cluster is None:
        return f"{plan.layout}"
    fitting = sum(row.fits for row in plan.layouts)
    return (
        f"{plan.layout} by objective {plan.deployment.objective} ({fitting} of {len(plan.layouts)} legal layouts fit)"
    )


def _compute(plan: Plan, figures: Figures) -> str:
    costs = plan.flops
    if plan.deployment.mode == "train":
        return f"{figures.flops(costs.train_step)} a step"
    prefill, decode = figures.flops(costs.prefill), figures.flops(costs.decode)
    return f"{figures.flops(costs.forward_per_token)} a token before attention; prefill {prefill}, decode step {decode}"


def _memory_title(plan: Plan) -> str:
    memory = plan.memory_per_device
    if plan.cluster is None or memory.capacity_bytes is None:
        return "Where the memory of the fullest device goes"
    extra = " that the engine may use" if plan.deployment.memory_fraction < 1 else ""
    return f"Where the memory of the fullest {plan.cluster.hardware} goes ({gib(memory.capacity_bytes)}{extra})"


def _memory_blocks(plan: Plan, figures: Figures) -> tuple[Block, ...]:
    memory = plan.memory_per_device
    bars = [Bar(_term_label(term), figures.gib(term.bytes), term.bytes) for term in memory.terms]
    if memory.headroom_bytes is not None and memory.headroom_bytes > 0:
        bars.append(Bar("free", figures.gib(memory.headroom_bytes), memory.headroom_bytes, hollow=True))
    chart = Bars(tuple(bars), max(memory.capacity_bytes or 0, memory.total_bytes))
    if all(term.origin == "exact" for term in memory.terms):
        return (chart,)
    return chart, Lines(("* calibrated on published logs, not computed; -v shows spread and source",))


def _term_label(term: MemoryTerm) -> str:
    return term.name if term.origin == "exact" else f"{term.name} *"


def _limits(plan: Plan, figures: Figures, max_seq_len: int | None) -> tuple[tuple[str, str], ...]:
    asked = plan.deployment
    context, batch = plan.max_context or 0, plan.max_batch or 0
    limit = ", the model's own limit" if context and context == max_seq_len else ""
    longest = f"{figures.whole(context)} tokens at batch {whole(asked.batch)}{limit}" if context else "none fits"
    largest = f"{figures.whole(batch)} sequences of {whole(asked.context)} tokens" if batch else "none fits"
    return (("longest context", longest), ("largest batch", largest))


def _suggestions(plan: Plan, figures: Figures) -> Table:
    rows = tuple(
        (item.change, item.command, figures.gib(item.total_bytes), figures.whole(item.max_context))
        for item in plan.suggestions
    )
    return Table(("change", "option", "fullest GPU", "longest context"), rows, "ll")


def estimated_note(estimated: tuple[str, ...], most: int = _MOST_FIELDS) -> str:
    """What the marked numbers rest on."""
    named = ", ".join(estimated[:most]) + (", …" if len(estimated) > most else "")
    noun = "field" if len(estimated) == 1 else "fields"
    return f"~ may rest on {len(estimated)} {noun} that nobody has published and the spec estimates: {named}"
