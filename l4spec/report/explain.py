"""`l4spec plan --explain`: each number's arithmetic with the spec's own values, and the source of every constant."""

from collections import defaultdict
from collections.abc import Iterator
from math import prod

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import AttentionPairs, HeadProducts, Matmul, Operation, Parameter, Work
from l4spec.quantization.published import scheme_for
from l4spec.report.explain_times import time_sections
from l4spec.report.page import Facts, Page, Section, Table
from l4spec.report.plan_page import prompt_of
from l4spec.report.quantities import exact_bytes, flops, whole
from l4spec.spec.storage import BlockLaw, PlainLaw, ScaledLaw
from planners.catalog import engine, hardware
from planners.counts.cost_sheet import CostRow, PassTokens, cost
from planners.counts.kv_cache import cache_dtype_bytes
from planners.counts.weights import scheme_of, stored_size, target_of
from planners.plan_types import Plan


def explain_page(graph: LayerGraph, plan: Plan) -> Page:
    """Sums whose last line is the plan's own number, then the constants with the documents that they come from."""
    asked = plan.deployment
    serving = asked.mode == "serve"
    sections = [
        _section("Parameters, counted", parameter_sums(graph), ("part", "layers", "arithmetic", "parameters"), "lll"),
        _flops_section("FLOPs of one token before attention", graph, Work(1, 1), text_only=True, pairs=False),
    ]
    if serving:
        prefill = Work(asked.batch, prompt_of(plan), phase="prefill", num_logits=1)
        decode = Work(asked.batch, 1, asked.context - 1, phase="decode")
        tokens = f"{whole(asked.batch)} × {whole(prompt_of(plan))} tokens"
        sections += [
            _flops_section(f"FLOPs of the prefill of {tokens}", graph, prefill),
            _flops_section(f"FLOPs of a decode step at {whole(asked.context)} tokens", graph, decode),
            _section("Weights, stored", weight_sums(graph, asked.quantization), _WEIGHT_HEADERS, "ll"),
            _section("KV cache of the whole model", cache_sums(graph, plan), ("layers", "arithmetic", "bytes"), "ll"),
        ]
    else:
        forward = Work(asked.batch, asked.context, phase="train")
        sections.append(
            _flops_section("FLOPs of the forward pass; a training step counts 3 times as much", graph, forward)
        )
    sections.append(Section("Memory of the fullest device", (_memory(plan),)))
    sections.extend(time_sections(plan))
    sections.append(Section("Where the constants come from", (Facts(tuple(_constants(graph, plan))),)))
    return tuple(sections)


Sums = list[tuple[str, ...]]
_WEIGHT_HEADERS = ("part", "stored as", "elements", "payload", "scales", "bytes")


def _section(title: str, rows: Sums, headers: tuple[str, ...], align: str) -> Section:
    return Section(title, (Table(headers, tuple(rows), align),))


def _named(group: LayerGroup) -> str:
    name = group.first.role if group.first.label == group.first.kind else group.first.label
    return f"{group.first.scope} {name}".removeprefix("text ")


def parameter_sums(graph: LayerGraph) -> Sums:
    """One row per part and kind of layer: `36 × (5,120 × 5,120 + …)`; the last row is the total."""
    rows: Sums = []
    total = 0
    for group in graph.groups:
        parts: dict[str, list[Parameter]] = defaultdict(list)
        for parameter in group.declaration.parameters:
            if parameter.numel:
                parts[group.first.part_of(parameter)].append(parameter)
        for part, parameters in parts.items():
            number = group.count * sum(parameter.numel for parameter in parameters)
            total += number
            rows.append((part.replace("_", " "), _named(group), _times(group.count, parameters), whole(number)))
    return [*rows, ("sum", "", "", whole(total))]


def _times(count: int, parameters: list[Parameter]) -> str:
    terms = " + ".join(_product(parameter.shape) for parameter in parameters)
    return terms if count == 1 else f"{count} × ({terms})"


def _product(shape: tuple[int, ...]) -> str:
    return " × ".join(whole(size) for size in shape)


def _flops_section(
    title: str, graph: LayerGraph, work: Work, *, text_only: bool = False, pairs: bool = True
) -> Section:
    rows = flops_sums(graph, work, text_only=text_only, pairs=pairs)
    return _section(title, rows, ("layers", "arithmetic", "FLOPs"), "ll")


def flops_sums(graph: LayerGraph, work: Work, *, text_only: bool = False, pairs: bool = True) -> Sums:
    """One row per kind of layer and of operation under `work`, a multiply-add counted as 2; the last row is the sum."""
    rows: Sums = []
    total = 0
    for row in cost(graph, PassTokens(work)).rows:
        if text_only and row.group.first.scope != "text":
            continue
        for number, text in _operations(row, pairs):
            total += row.group.count * number
            rows.append((_named(row.group), f"{row.group.count} × {text}", whole(row.group.count * number)))
    return [*rows, ("sum", flops(total), whole(total))]


def _operations(row: CostRow, pairs: bool) -> Iterator[tuple[int, str]]:
    by_rows: dict[int, list[Operation]] = defaultdict(list)
    for operation in row.operations:
        if isinstance(operation, Matmul) and operation.flops:
            by_rows[operation.rows].append(operation)
    for num_rows, matmuls in by_rows.items():
        number = sum(matmul.flops for matmul in matmuls)
        yield number, f"2 × {whole(num_rows)} tokens × {whole(number // (2 * num_rows))} weights"
    for operation in row.operations:
        if pairs and isinstance(operation, AttentionPairs) and operation.flops:
            widths = f"({operation.qk_dim} + {operation.v_dim})"
            yield operation.flops, f"2 × {whole(operation.pairs)} pairs × {operation.num_heads} heads × {widths}"
        elif isinstance(operation, HeadProducts) and operation.flops:
            yield operation.flops, f"2 × {operation.num_heads} heads × {whole(operation.multiply_adds)} multiply-adds"


def weight_sums(graph: LayerGraph, quantization_name: str) -> Sums:
    """One row per part and packing law: elements, payload and scales; the last row is the whole model's weights."""
    scheme = scheme_of(scheme_for(graph.model.spec, quantization_name))
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for node, parameter in graph.parameters():
        if not parameter.tied_to:
            size = stored_size(graph, node, parameter, parameter.shape, scheme)
            entry = sums[node.part_of(parameter), law_text(scheme.table.law_for(target_of(graph, node, parameter)))]
            entry[0] += prod(parameter.shape)
            entry[1] += size.payload_bytes
            entry[2] += size.scale_bytes + size.zero_point_bytes
    rows: Sums = [(part.replace("_", " "), law, *_stored(entry)) for (part, law), entry in sums.items()]
    return [*rows, ("sum", "", *_stored([sum(entry[index] for entry in sums.values()) for index in range(3)]))]


def _stored(entry: list[int]) -> tuple[str, ...]:
    elements, payload, scales = entry
    return whole(elements), exact_bytes(payload), exact_bytes(scales), exact_bytes(payload + scales)


def law_text(law: PlainLaw | ScaledLaw | BlockLaw) -> str:
    """A packing law in words."""
    if isinstance(law, PlainLaw):
        return law.dtype
    if isinstance(law, BlockLaw):
        return f"{law.type}: {law.bytes} B per {law.weights} weights"
    zero = f" and {law.zero_point_bits}-bit zero point" if law.zero_point_bits else ""
    return f"{law.bits} bits, one {law.scale_dtype} scale{zero} per {_scale_group(law.group)}"


def _scale_group(group: str | int | tuple[int, int]) -> str:
    if isinstance(group, int):
        return f"{group} weights"
    if isinstance(group, tuple):
        return f"block of {_product(group)}"
    return {"tensor": "matrix", "row": "output row"}[group]


def cache_sums(graph: LayerGraph, plan: Plan) -> Sums:
    """One row per kind of caching layer; the last row is the plan's cache, which an engine may keep in other units."""
    cache, size = plan.kv_cache, cache_dtype_bytes(plan.kv_cache.dtype)
    groups = {group.first.label: group for group in graph.groups if group.declaration.cache}
    rows: Sums = []
    for layer in cache.layers:
        of_layer, law = groups[layer.label].declaration.cache, (layer.law, layer.bound)
        entries = tuple(entry for entry in of_layer if (entry.bound.kind, entry.bound.size) == law)
        if layer.law == "state":
            one = " + ".join(f"{e.name} {whole(e.elements_per_token)} × {e.bytes_per_element(size)} B" for e in entries)
            kept, each = f"{whole(cache.batch)} states", f"({one})"
        else:
            one = " + ".join(f"{entry.name} {whole(entry.elements_per_token)}" for entry in entries)
            unit = "entries" if layer.law == "compressed" else "tokens"
            kept, each = f"{whole(cache.batch)} × {whole(layer.tokens_kept)} {unit}", f"({one}) × {size} B"
        number = cache.batch * layer.num_layers * layer.bytes
        rows.append((layer.label, f"{layer.num_layers} × {kept} × {each}", exact_bytes(number)))
    return [*rows, (f"policy {cache.policy}", cache.policy_explained, exact_bytes(cache.bytes))]


def _memory(plan: Plan) -> Table:
    memory = plan.memory_per_device
    rows = [
        (term.name, term.arithmetic or "-", exact_bytes(term.bytes), f"{term.origin}: {term.source}")
        for term in memory.terms
    ]
    rows.append(("sum", "", exact_bytes(memory.total_bytes), ""))
    if memory.capacity_bytes is not None:
        rows.append(("capacity", "", exact_bytes(memory.capacity_bytes), memory.capacity_source))
    return Table(("term", "arithmetic", "bytes", "source"), tuple(rows), "llrl", 60)


def _constants(graph: LayerGraph, plan: Plan) -> Iterator[tuple[str, str]]:
    for source in graph.model.spec.sources:
        yield "spec", source
    scheme, machine = scheme_for(graph.model.spec, plan.deployment.quantization), engine(plan.deployment.engine)
    yield f"quantization {scheme.name}", scheme.source
    yield f"engine {machine.name}", machine.source + (f" (version {machine.version})" if machine.version else "")
    if machine.memory is not None:
        share = machine.memory.fraction
        yield f"engine's share {share.value:g}", share.source
    if machine.block_size_tokens is not None:
        yield f"block of {machine.block_size_tokens.value} tokens", machine.block_size_tokens.source
    if plan.cluster is not None:
        yield from _hardware(plan.cluster.hardware)


def _hardware(name: str) -> Iterator[tuple[str, str]]:
    entry = hardware(name)
    memory = entry.memory
    for label, sourced in (
        ("nominal memory", memory.nominal),
        ("physical memory", memory.physical),
        ("free before load", memory.free_before_load),
    ):
        if sourced is not None:
            note = f" ({sourced.note})" if sourced.note else ""
            yield f"{name} {label}", f"{exact_bytes(sourced.value)}, {sourced.source}{note}"
    if entry.gpus_per_host is not None:
        yield f"{name} a host", f"{entry.gpus_per_host.value}, {entry.gpus_per_host.source}"


__all__ = ["cache_sums", "explain_page", "flops_sums", "law_text", "parameter_sums", "weight_sums"]
