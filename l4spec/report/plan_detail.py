"""The detail of a plan (`l4spec plan -v`): every part of every sum, each under its own title."""

from l4spec.report.latency import latency_sections
from l4spec.report.page import Facts, Lines, Page, Section, Table, ranges
from l4spec.report.plan_page import marks_of, prompt_of, term_figures
from l4spec.report.quantities import Figures, Marked, share, whole
from l4spec.units import gib
from planners.plan_types import KeptState, LayoutRow, Plan, TrainTraffic


def detail_page(plan: Plan) -> Page:
    """Parameters, FLOPs, cache, memory terms, layouts and communication, table by table."""
    figures = marks_of(plan)
    sizes, work = figures.sizes, figures.work
    sections = [
        Section("Parameters by part", (_parts(plan, sizes), *_modules(plan, sizes))),
        Section("Parameters by layer", (_layers(plan, sizes),)),
        Section(
            "FLOPs (model_flops: a multiply-add is 2; attended pairs and chosen experts only)", (_flops(plan, figures),)
        ),
    ]
    if plan.deployment.mode == "serve" and plan.kv_cache.layers:
        title = f"KV cache of one sequence by layer kind (policy {plan.kv_cache.policy}, {plan.kv_cache.dtype})"
        sections.append(Section(title, (_cache(plan, work),)))
    sections.append(Section("Memory of the fullest device, term by term", (_terms(plan, figures),)))
    sections.append(Section(_layouts_title(plan), (_layouts(plan, work),)))
    if plan.illegal_layouts:
        sections.append(Section("Illegal layouts", (_illegal(plan),)))
    if plan.communication:
        sections.append(Section("Communication of one device per token of its batch", (_communication(plan),)))
    if plan.train_traffic is not None and plan.train_traffic.rows:
        sections.append(Section(_traffic_title(plan.train_traffic), (_traffic(plan.train_traffic, work),)))
    sections.extend(latency_sections(plan))
    if plan.estimated:
        sections.append(Section("Estimated fields", (Lines(plan.estimated),)))
    return tuple(sections)


def _parts(plan: Plan, figures: Figures) -> Table:
    params, weights = plan.params, plan.weights
    rows = [
        (
            part.replace("_", " "),
            figures.count(total),
            figures.count(params.active_by_part[part]),
            share(total, params.total),
            figures.gib(weights.by_part[part]) if part in weights.by_part else "-",
        )
        for part, total in params.by_part.items()
        if total
    ]
    whole_model = figures.count(params.active_with_vision)
    name = "sum" if params.active_with_vision == params.active else "sum, with an image"
    rows.append((name, figures.count(params.total), whole_model, share(1, 1), figures.gib(weights.bytes)))
    if params.active_with_vision != params.active:
        rows.append(("sum of a text token", "", figures.count(params.active), "", ""))
    return Table(("part", "parameters", "active", "share", f"weights in {weights.scheme}"), tuple(rows))


def _modules(plan: Plan, figures: Figures) -> tuple[Lines, ...]:
    """Parameters of the spec's modules of multi-token prediction, which only the plan's drafts include."""
    if plan.module_params is None:
        return ()
    size = f"{figures.count(plan.module_params)} parameters in modules of multi-token prediction (text.mtp)"
    if plan.drafts is not None:
        return (Lines((f"beside these {size}, of which one module drafts",)),)
    return (Lines((f"not counted: {size}; --draft-acceptance plans drafting with them",)),)


def _layers(plan: Plan, figures: Figures) -> Table:
    rows = tuple(
        (
            ranges(row.layers),
            whole(len(row.layers)),
            row.attention or "-",
            row.ffn or "-",
            figures.count(row.total),
            figures.count(row.active),
        )
        for row in plan.params.by_layer
    )
    return Table(("layers", "count", "attention", "ffn", "parameters each", "active each"), rows, "lrll")


def _flops(plan: Plan, figures: Marked) -> Facts:
    costs, asked, sizes, work = plan.flops, plan.deployment, figures.sizes, figures.work
    tokens = f"{whole(asked.batch)} × {whole(asked.context)} tokens"
    rows = [
        ("forward pass per token, without attention", sizes.flops(costs.forward_per_token)),
        ("attention of one (query, key) pair, all layers", work.flops(costs.attention_per_pair)),
        (f"prefill of {whole(asked.batch)} × {whole(prompt_of(plan))} tokens, last logits", work.flops(costs.prefill)),
        (f"decode step at {whole(asked.context)} tokens", work.flops(costs.decode)),
        (f"training step of {tokens}, no recompute", work.flops(costs.train_step)),
    ]
    if costs.vision_per_tile is not None:
        rows.append(("vision, one tile", sizes.flops(costs.vision_per_tile)))
    return Facts(tuple(rows))


def _cache(plan: Plan, figures: Figures) -> Table:
    rows = tuple(
        (
            row.label,
            row.kind,
            row.law if row.bound is None else f"{row.law} of {whole(row.bound)}",
            whole(row.num_layers),
            figures.exact_bytes(row.bytes_per_token_per_layer),
            whole(row.tokens_kept),
            figures.gib(row.bytes * row.num_layers),
        )
        for row in plan.kv_cache.layers
    )
    return Table(("layers", "kind", "keeps", "count", "per token and layer", "tokens kept", "all of them"), rows, "lll")


def _terms(plan: Plan, figures: Marked) -> Table:
    rows = tuple(
        (
            term.name,
            term_figures(term, figures).gib(term.bytes),
            term.origin,
            "-" if term.spread is None else f"{gib(term.spread[0])} – {gib(term.spread[1])}",
            term.source,
        )
        for term in plan.memory_per_device.terms
    )
    return Table(("term", "memory", "origin", "spread", "source"), rows, "lrlll", 50)


MOST_LISTED = 500
"""Most layouts in a listing; `--format json` has every one."""


def _layouts_title(plan: Plan) -> str:
    if len(plan.layouts) <= MOST_LISTED:
        return "Legal layouts"
    return f"Legal layouts: {MOST_LISTED} of {len(plan.layouts):,}, the chosen one and the smallest replicas"


def _listed(plan: Plan) -> tuple[LayoutRow, ...]:
    """The layouts to list, in their order: all, or the chosen one and those with the smallest replicas."""
    if len(plan.layouts) <= MOST_LISTED:
        return plan.layouts

    def rank(row: LayoutRow) -> tuple[bool, int]:
        return row.layout != plan.layout, row.layout.num_devices // row.layout.dp

    listed = {row.layout for row in sorted(plan.layouts, key=rank)[:MOST_LISTED]}
    return tuple(row for row in plan.layouts if row.layout in listed)


def _layouts(plan: Plan, figures: Figures) -> Table:
    limited = plan.cluster is not None
    rows = tuple(
        (
            f"{row.layout}{' (chosen)' if row.layout == plan.layout else ''}",
            ("yes" if row.fits else "no") if limited else "-",
            figures.gib(row.total_bytes),
            figures.whole(row.max_context) if limited else "-",
            figures.whole(row.max_batch) if limited else "-",
            *(figures.seconds(time) if time is not None else "-" for time in _times(plan, row)),
            *([_state(row.training)] if row.training else []),
        )
        for row in _listed(plan)
    )
    times = ("TTFT", "TPOT") if plan.deployment.mode == "serve" else ("step", "ZeRO, checkpointing, micro-batch")
    return Table(("layout", "fits", "fullest device", "longest context", "largest batch", *times), rows)


def _state(kept: KeptState) -> str:
    return f"{kept.zero_stage}, {kept.activation_checkpointing}, {kept.micro_batch}"


def _times(plan: Plan, row: LayoutRow) -> tuple[float | None, ...]:
    if plan.deployment.mode == "serve":
        return row.ttft_seconds, row.time_per_output_token_seconds
    return (row.step_time_seconds,)


def _illegal(plan: Plan) -> Table:
    return Table(("layout", "why"), tuple((str(row.layout), row.reason) for row in plan.illegal_layouts), "ll")


def _communication(plan: Plan) -> Table:
    rows = tuple(
        (
            row.axis,
            row.collective,
            f"{whole(row.bytes_per_token)} B",
            _tier(row.intra_host_bytes_per_token),
            _tier(row.inter_host_bytes_per_token),
            row.arithmetic,
        )
        for row in plan.communication
    )
    return Table(("axis", "collective", "sent", "inside a host", "between hosts", "arithmetic"), rows, "llrrrl")


def _tier(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{whole(num_bytes)} B"


def _traffic_title(traffic: TrainTraffic) -> str:
    step = f"{whole(traffic.tokens)} tokens in {whole(traffic.micro_batches)} micro-batches"
    return f"What a device of stage {traffic.stage} sends in a training step of {step}"


def _traffic(traffic: TrainTraffic, figures: Figures) -> Table:
    rows = [
        (
            f"{row.axis.replace('_', ' x ')} ({whole(row.ranks)})",
            row.collective,
            row.what,
            whole(row.calls),
            figures.gib(row.payload_bytes),
            figures.gib(row.ring_bytes),
            "-" if row.intra_host_bytes is None else figures.gib(row.intra_host_bytes),
            "-" if row.inter_host_bytes is None else figures.gib(row.inter_host_bytes),
        )
        for row in traffic.rows
    ]
    headers = ("axis", "collective", "of", "calls", "payload", "sent by a ring", "inside a host", "between hosts")
    return Table(headers, tuple(rows), "lll")
