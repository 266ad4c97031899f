"""The report of `l4spec plan SPEC` on one screen: fit, memory by term, and alternatives."""

from l4spec.options import flag_of
from l4spec.quantization.published import AS_PUBLISHED, UNQUANTIZED
from l4spec.report.page import Bar, Bars, Block, Facts, Lines, Page, Section, Table, Tone
from l4spec.report.quantities import Figures, Marked, marked, whole
from l4spec.units import gib
from planners.plan_types import (
    BY_TIME,
    DeploymentInfo,
    DraftPlan,
    Estimates,
    HostMemoryUse,
    LayoutRow,
    MemoryTerm,
    Plan,
)
from planners.request import PlanRequest
from planners.search.layouts import MAX_BATCH
from planners.video import VideoInfo

_MOST_FIELDS = 3
_MOST_AS_FAST = 3
_TONES: dict[bool | None, Tone] = {True: "good", False: "bad", None: ""}
_LITTLE_ROOM = 0.01
_NOTABLE = 0.1
"""Relative differences in time below this are within the error of estimates."""


def plan_page(plan: Plan, *, max_seq_len: int | None = None) -> Page:
    """Verdict first; with `max_seq_len` it states if the model, and not memory, limits the context."""
    figures = marks_of(plan)
    sections = [
        # the first reason is the verdict in bytes
        Section("", (Lines((verdict(plan), *plan.reasons[1:], *_tightness(plan)), _TONES[plan.fits]),)),
        Section("", (Facts(plan_facts(plan, figures)),)),
        Section(_memory_title(plan), _memory_blocks(plan, figures)),
    ]
    if plan.cluster is not None:
        gives = (*limit_facts(plan, figures, max_seq_len), *(_time_and_price(plan) if plan.fits else ()))
        sections.append(Section("", (Facts(gives),)))
    if plan.suggestions:
        sections.append(Section("What would make it fit", (suggestion_table(plan, figures),)))
    elif plan.fits is False:
        nothing = "No change of KV dtype, weights, context or number of GPUs, alone or two together, makes it fit."
        sections.append(Section("", (Lines((nothing,)),)))
    notes = estimate_notes(plan.estimated, plan.estimates)
    if notes:
        sections.append(Section("", (Lines(notes),)))
    return tuple(sections)


def _time_and_price(plan: Plan) -> tuple[tuple[str, str], ...]:
    from l4spec.report.latency import latency_facts
    from l4spec.report.prices import price_facts

    return (*latency_facts(plan), *price_facts(plan))


def marks_of(plan: Plan) -> Marked:
    """Numbers of a plan that depend on estimated fields, which get a mark."""
    return marked(plan.estimates.params, plan.estimates.work)


def estimate_notes(estimated: tuple[str, ...], estimates: Estimates) -> tuple[str, ...]:
    """Notes on the estimated fields that marked numbers depend on, and on those without effect."""
    harmless = tuple(field for field in estimated if field not in estimates.work)
    notes = (
        ("~ depends on values that the spec estimates because they are unpublished", estimates.work),
        ("Estimated without effect on any number here", harmless),
    )
    return tuple(f"{what}, {fields_in_words(fields)}" for what, fields in notes if fields)


def verdict(plan: Plan) -> str:
    """One sentence: does it fit, and by how much."""
    memory, figures = plan.memory_per_device, marks_of(plan).work
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


def _tightness(plan: Plan) -> tuple[str, ...]:
    """Caution for a plan that leaves little memory free."""
    memory = plan.memory_per_device
    if not plan.fits or memory.capacity_bytes is None or memory.headroom_bytes is None:
        return ()
    if memory.headroom_bytes >= _LITTLE_ROOM * memory.capacity_bytes:
        return ()
    return (f"less than {100 * _LITTLE_ROOM:.0f} % is free: fragmentation is not counted, and may take more",)


def plan_facts(plan: Plan, figures: Marked) -> tuple[tuple[str, str], ...]:
    """Facts of the plan, one per line: the model, the request, and its cost."""
    asked, params = plan.deployment, plan.params
    origin = "the default; change it with --context" if asked.context_origin == "default" else "as asked"
    rows = [
        (
            "model",
            f"{figures.sizes.count(params.total)} parameters, {figures.sizes.count(params.active)} active per token",
        ),
        ("weights", f"{figures.sizes.gib(plan.weights.bytes)} {stored_in(plan)}"),
        ("context", f"{whole(asked.context)} tokens ({origin}), batch {whole(asked.batch)}{_chosen(plan)}"),
    ]
    if asked.mode == "serve":
        cache = plan.kv_cache
        size = f"{figures.work.gib(cache.bytes)} in {asked.kv_dtype}"
        rows.append(("kv cache", f"{size}; policy {cache.policy}: {cache.policy_explained}"))
    else:
        rows.append(("training", _training(plan)))
    if asked.video is not None:
        rows.append(("video", _clip(asked.video)))
    if asked.num_tiles:
        rows.append(("images", f"{whole(asked.num_tiles)} tiles"))
    rows.append(("layout", layout_in_words(plan)))
    if plan.drafts is not None:
        rows.append(("drafts", drafts_in_words(plan.drafts, figures)))
    if plan.host_memory is not None:
        rows.append(("host memory", host_memory_in_words(plan.host_memory, figures)))
    for name, line in (("as fast", _as_fast(plan)), ("or", _alternative(plan, figures))):
        if line is not None:
            rows.append((name, line))
    rows.append(("compute", _compute(plan, figures)))
    return tuple(rows)


def drafts_in_words(drafts: DraftPlan, figures: Marked) -> str:
    """Tokens per step, memory of the module on a device, and its part of the step, as text."""
    shares = ", ".join(f"{100 * share:g} %" for share in drafts.acceptance)
    tokens = (
        f"{len(drafts.acceptance)} by the spec's module, accepted {shares}: {drafts.tokens_per_step:.4g} tokens a step"
    )
    size = f"{figures.work.gib(drafts.weights_bytes)} of weights, {figures.work.gib(drafts.kv_cache_bytes)} of cache"
    if drafts.step_seconds is None or drafts.draft_seconds is None:
        return f"{tokens}; {size}"
    step, drafting = figures.work.seconds(drafts.step_seconds), figures.work.seconds(drafts.draft_seconds)
    return f"{tokens}; {size}; a step of {step}, of which {drafting} drafting"


def host_memory_in_words(use: HostMemoryUse, figures: Marked) -> str:
    """Contents of the host's memory, its bandwidth, and the option of llama.cpp for the same placement."""
    if not use.num_layers:
        return f"nothing of {gib(use.capacity_bytes)}: the GPU has room for the whole model"
    of = f"of the first {whole(use.num_layers)} of {whole(use.of_layers)} layers"
    what, option = (
        (f"routed experts {of}", f"--n-cpu-moe {use.num_layers}")
        if use.part == "experts"
        else (
            f"the first {whole(use.num_layers)} of {whole(use.of_layers)} layers",
            f"-ngl {use.of_layers - use.num_layers}",
        )
    )
    size = f"{figures.work.gib(use.weights_bytes + use.kv_cache_bytes)} of {gib(use.capacity_bytes)}"
    origin = "" if use.bandwidth_origin == "given" else " (assumed; change it with --host-bandwidth)"
    rates = f"read at {use.bandwidth / 1e9:,.4g} GB/s{origin}, link of {use.link_bandwidth / 1e9:,.4g} GB/s"
    return f"{what}, {size}; {rates}; llama.cpp: {option}"


def _clip(video: VideoInfo) -> str:
    """The still frames of a video, their tiles and tokens in words."""
    few = f" of {whole(video.sampled)}" if video.sampled > video.stills else ""
    rate = "" if video.fps is None else f" at {video.fps:g} per second"
    size = f" of {video.frame_size}" if video.frame_size else ""
    return (
        f"{video.seconds:g} s, {whole(video.stills)}{few} frames{rate}{size}; {whole(video.tiles_per_still)} tiles and "
        f"{whole(video.tokens_per_still)} tokens per frame, {whole(video.tokens)} tokens of the prompt"
    )


def _chosen(plan: Plan) -> str:
    """Note that the planner chose the batch."""
    asked = plan.deployment
    return (
        f" (chosen: {asked.batch * asked.context / 1e6:,.1f}M tokens a step)" if asked.batch_origin == "chosen" else ""
    )


def stored_in(plan: Plan) -> str:
    """The format of the weights in words: `in bf16`, `as published: fp8-block`."""
    name = plan.deployment.quantization
    if not plan.deployment.as_published or name == UNQUANTIZED:
        return f"in {name}"
    return "as published: by the spec's stored_as" if name == AS_PUBLISHED else f"as published: {name}"


def _training(plan: Plan) -> str:
    """Training settings as text, with the options that would fix those that were chosen."""
    from planners.device.training_state import RUN

    asked = plan.deployment
    which = "" if asked.fp8_matmuls in (None, "fp8") else f" as {asked.fp8_matmuls} says"
    matmuls = "" if asked.precision in (None, "bf16") else f", matmuls in {asked.precision}{which}"
    state = (
        f"{asked.optimizer}, ZeRO stage {asked.zero_stage}, activation checkpointing {asked.activation_checkpointing}"
    )
    if asked.sequence_parallel and plan.layout.tp > 1:
        state += ", sequence parallelism"
    if (asked.virtual_stages or 1) > 1:
        state += f", {asked.virtual_stages} virtual stages"
    if asked.trainer:
        state += f", by {asked.trainer}"
    if asked.lora_rank and asked.lora_targets:
        params = f"{whole(asked.lora_params or 0)} parameters"
        state = f"LoRA of rank {asked.lora_rank} on {', '.join(asked.lora_targets)} ({params}), {state}"
    passes = f"micro-batches of {whole(asked.micro_batch or 1)}"
    flags = ", ".join(flag_of(PlanRequest, name) for name in asked.left_open)
    several = plan.layout.cp > 1 or (asked.virtual_stages or 1) > 1
    runtime = "l4spec" if asked.lora_rank or asked.precision not in RUN else "l4spec.distribute" if several else None
    not_run = f"; planned, not run by {runtime}" if runtime else ""
    return f"{state}, {passes}{matmuls}{f' (chosen; fix with {flags})' if flags else ''}{not_run}"


def _as_fast(plan: Plan) -> str | None:
    """The layouts whose times differ from the chosen one's by less than estimates are wrong by."""
    others = [str(row.layout) for row in plan.layouts if row.as_fast and row.layout != plan.layout]
    if not others or plan.deployment.chosen_by != "time":
        return None
    more = f" and {len(others) - _MOST_AS_FAST} more" if len(others) > _MOST_AS_FAST else ""
    return f"{', '.join(others[:_MOST_AS_FAST])}{more}: within the error of the estimates"


def layout_in_words(plan: Plan) -> str:
    """The degrees, the number of layouts they were chosen from, and the objective."""
    if plan.cluster is None:
        return f"{plan.layout}"
    fitting = sum(row.fits for row in plan.layouts)
    asked = plan.deployment
    untimed = asked.chosen_by == "memory" and asked.objective in BY_TIME
    by = ", the simplest since no time is estimated" if untimed else ""
    return f"{plan.layout} (objective {asked.objective}{by}; {fitting} of {len(plan.layouts)} legal layouts fit)"


def _alternative(plan: Plan, figures: Marked) -> str | None:
    """Comparison with another layout: the fastest, or if that is planned, the one with the most free memory."""
    rows = {row.layout: row for row in plan.layouts if row.fits and _seconds(row) is not None}
    chosen = rows.pop(plan.layout, None)
    if chosen is None or not rows:
        return None
    now = _seconds(chosen) or 0.0
    other = min(rows.values(), key=lambda row: _seconds(row) or 0.0)
    if (_seconds(other) or 0.0) > now * (1 - _NOTABLE):
        other = min(rows.values(), key=lambda row: row.total_bytes)
        if other.total_bytes >= chosen.total_bytes:
            return None
    then, more = _seconds(other) or 0.0, chosen.total_bytes - other.total_bytes
    if abs(then - now) <= now * _NOTABLE and abs(more) <= chosen.total_bytes * _NOTABLE:
        return None
    speed = "about as fast" if abs(then - now) <= now * _NOTABLE else _times_as_fast(now, then)
    why = "; no measured row serves by a pipeline" if other.layout.pp > 1 and plan.deployment.mode == "serve" else ""
    return f"{other.layout}: {speed}, {figures.work.gib(abs(more))} {'more' if more >= 0 else 'less'} free{why}"


def _times_as_fast(now: float, then: float) -> str:
    return f"{now / then:.1f}x faster" if then <= now else f"{then / now:.1f}x slower"


def _seconds(row: LayoutRow) -> float | None:
    return row.time_per_output_token_seconds or row.step_time_seconds


def prompt_of(plan: Plan) -> int:
    """Tokens of each prompt: the planned context except its output tokens."""
    return max(1, plan.deployment.context - (plan.request.get("output_tokens") or 0))


def _compute(plan: Plan, figures: Marked) -> str:
    costs = plan.flops
    if plan.deployment.mode == "train":
        return f"{figures.work.flops(costs.train_step)} per step"
    prefill, decode = figures.work.flops(costs.prefill), figures.work.flops(costs.decode)
    token = figures.sizes.flops(costs.forward_per_token)
    return f"{token} per token without attention; prefill {prefill}, decode step {decode}"


def _memory_title(plan: Plan) -> str:
    memory = plan.memory_per_device
    if plan.cluster is None or memory.capacity_bytes is None:
        return "Where the memory of the fullest device goes"
    extra = " that the engine may use" if plan.deployment.memory_fraction < 1 else ""
    return f"Where the memory of the fullest {plan.cluster.hardware} goes ({gib(memory.capacity_bytes)}{extra})"


def _memory_blocks(plan: Plan, figures: Marked) -> tuple[Block, ...]:
    memory = plan.memory_per_device
    bars = [Bar(_term_label(term), term_figures(term, figures).gib(term.bytes), term.bytes) for term in memory.terms]
    if memory.headroom_bytes is not None and memory.headroom_bytes > 0:
        bars.append(Bar("free", figures.work.gib(memory.headroom_bytes), memory.headroom_bytes, hollow=True))
    chart = Bars(tuple(bars), max(memory.capacity_bytes or 0, memory.total_bytes))
    lines = []
    if any(term.origin != "exact" for term in memory.terms):
        spread = "spread and " if any(term.spread for term in memory.terms) else ""
        lines.append(f"* calibrated on published logs, not computed; -v shows its {spread}source")
    if memory.unknown:
        names = ", ".join(name.replace("_", " ") for name in memory.unknown)
        what = "on this hardware" if memory.unknown == ("driver_and_context",) else "for this version and layout"
        lines.append(f"not in this: {names}, which has not been measured {what}")
    return (chart, Lines(tuple(lines))) if lines else (chart,)


def term_figures(term: MemoryTerm, figures: Marked) -> Figures:
    """Mark of a memory term: weights depend on sizes alone, terms read from logs on no field, others on both."""
    if term.origin == "calibrated" and term.name != "activations":
        return Figures(estimated=False)
    return figures.sizes if term.name == "weights" else figures.work


def _term_label(term: MemoryTerm) -> str:
    return term.name if term.origin == "exact" else f"{term.name} *"


def limit_facts(plan: Plan, figures: Marked, max_seq_len: int | None) -> tuple[tuple[str, str], ...]:
    """The longest context and the largest batch that fit."""
    asked = plan.deployment
    context, batch = plan.max_context or 0, plan.max_batch or 0
    limit = ", the model's own limit" if context and context == max_seq_len else ""
    longest = (
        f"{figures.work.whole(context)} tokens at batch {whole(asked.batch)}{limit}"
        if context
        else "none: not one token fits"
    )
    largest = _most(batch, asked, figures) if batch else "none: not one sequence fits"
    return (("longest context", longest), ("largest batch", largest))


def _most(batch: int, asked: DeploymentInfo, figures: Marked) -> str:
    """The largest batch; the cap of the search for it is no result."""
    of_tokens = f"of {whole(asked.context)} tokens"
    if batch < MAX_BATCH:
        return f"{figures.work.whole(batch)} sequences {of_tokens}"
    if asked.mode == "train":
        return f"any number of sequences {of_tokens}, in micro-batches of {whole(asked.micro_batch or 1)}"
    return f"{whole(MAX_BATCH)} and more sequences {of_tokens}"


def suggestion_table(plan: Plan, figures: Marked) -> Table:
    """Changes that make a plan fit."""
    rows = tuple(
        (item.change, item.command, figures.work.gib(item.total_bytes), figures.work.whole(item.max_context))
        for item in plan.suggestions
    )
    return Table(("change", "option", "fullest GPU", "longest context"), rows, "ll")


def fields_in_words(paths: tuple[str, ...]) -> str:
    """`5 fields: a, b, c, …`."""
    noun = "field" if len(paths) == 1 else "fields"
    return f"{len(paths)} {noun}: {', '.join(paths[:_MOST_FIELDS])}{', …' if len(paths) > _MOST_FIELDS else ''}"
