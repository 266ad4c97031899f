"""Laws of the planner over random models: sums, shards, caches, FLOPs and packing."""

from itertools import pairwise
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Dim, Parameter, Work
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import (
    MESH_AXIS,
    degree_of,
    illegal_reason,
    layout_for,
    shard_ranges,
    shard_shape,
    shard_size,
    split_layers,
)
from planners.catalog import engine, quantization, shipped_names
from planners.counts.cost_sheet import PassTokens, cost
from planners.counts.flops import count_flops, model_flops
from planners.counts.kv_cache import cache_bytes, model_rows, plan_cache
from planners.counts.params import count_params
from planners.counts.weights import scheme_of, weigh
from planners.device.stages import stages
from planners.plan import plan
from tests.strategies import graphs

DEGREES = (1, 2, 3, 4, 6, 8)
ENGINES = shipped_names("engines")
BF16 = scheme_of(quantization("bf16"))


def legal_layouts(graph: LayerGraph, axis: str) -> list[Layout]:
    """Layouts of DEGREES along one axis that the model allows."""
    every = [Layout(**{axis: degree}) for degree in DEGREES]
    return [layout for layout in every if illegal_reason(graph, layout) is None]


def legal_grids(graph: LayerGraph) -> list[Layout]:
    """Every legal tp x ep of DEGREES; one device is always among them."""
    every = [Layout(tp=tp, ep=ep) for tp in DEGREES for ep in DEGREES]
    return [layout for layout in every if illegal_reason(graph, layout) is None]


def fullest_bytes(graph: LayerGraph, layout: Layout, scheme: str = "bf16") -> int:
    result = stages(graph, scheme_of(quantization(scheme)), layout.tp, layout.ep, layout.pp)
    return max(stage.weights.total_bytes for stage in result)


@given(graphs())
def test_parts_and_layers_sum_to_the_total_and_active_never_exceeds_it(graph: LayerGraph) -> None:
    params = count_params(graph)
    tensors = [p for _, p in graph.parameters() if not p.buffer and not p.tied_to]
    assert params.total == sum(params.by_part.values()) == sum(prod(p.shape) for p in tensors)
    assert params.active_with_vision == sum(params.active_by_part.values())
    assert params.active_without_embedding <= params.active <= params.active_with_vision <= params.total
    assert all(params.active_by_part[part] <= count for part, count in params.by_part.items())
    in_layers = sum(len(row.layers) * row.total for row in params.by_layer)
    at_ends = sum(node.declaration.num_parameters for node in graph.nodes if node.layer is None)
    in_tower = sum(n.declaration.num_parameters for n in graph.nodes if n.scope == "vision" and n.layer is not None)
    assert in_layers + at_ends + in_tower == params.total
    assert sorted(layer for row in params.by_layer for layer in row.layers) == list(range(graph.num_layers))


@given(graphs())
def test_weights_by_part_sum_to_the_whole_and_bf16_is_two_bytes_an_element(graph: LayerGraph) -> None:
    weights = weigh(graph, BF16)
    assert weights.bytes == sum(weights.by_part.values()) == 2 * sum(p.num_stored for _, p in graph.parameters())
    assert weights.scale_bytes == 0


@given(graphs())
def test_one_device_holds_what_the_model_weighs(graph: LayerGraph) -> None:
    for name in ("bf16", "fp8", "gguf-q4_k_m", "fp8-mixed"):
        scheme = scheme_of(quantization(name))
        (stage,) = stages(graph, scheme, 1, 1, 1)
        assert stage.weights.total_bytes == weigh(graph, scheme).bytes


@given(graphs())
def test_more_tensor_parallelism_never_raises_weights_on_a_device(graph: LayerGraph) -> None:
    legal = legal_layouts(graph, "tp")
    for less in legal:
        for more in legal:
            comparable = more.tp % less.tp == 0 or (more.tp > less.tp and graph.model.vision is None)
            if comparable:
                assert fullest_bytes(graph, more) <= fullest_bytes(graph, less)
                assert fullest_bytes(graph, more, "fp8") <= fullest_bytes(graph, less, "fp8")


@given(graphs())
def test_more_expert_parallelism_never_raises_weights_on_a_device(graph: LayerGraph) -> None:
    sizes = [fullest_bytes(graph, layout) for layout in legal_layouts(graph, "ep")]
    assert all(more <= less for less, more in pairwise(sizes))


@given(graphs())
def test_a_pipeline_stage_never_holds_more_than_the_model(graph: LayerGraph) -> None:
    for layout in legal_layouts(graph, "pp"):
        assert fullest_bytes(graph, layout) <= fullest_bytes(graph, Layout())


@given(st.integers(1, 300), st.data())
def test_stages_cover_the_layers_in_order_and_evenly(num_layers: int, data: st.DataObject) -> None:
    pp = data.draw(st.integers(1, num_layers))
    result = split_layers(num_layers, pp)
    assert [layer for stage in result for layer in stage] == list(range(num_layers))
    assert len(result) == pp
    assert max(map(len, result)) - min(map(len, result)) <= 1


@given(graphs())
def test_shards_cover_each_tensor_exactly_and_the_largest_is_the_one_counted(graph: LayerGraph) -> None:
    for layout in legal_grids(graph):
        for group in graph.groups:
            cut = layout_for(group.first, layout)
            for parameter in group.declaration.parameters:
                for dim in parameter.dims:
                    check_cover(dim, cut)
                largest = tuple(max(map(len, shard_ranges(dim, cut))) for dim in parameter.dims)
                assert largest == shard_shape(group.first, parameter, layout)


def check_cover(dim: Dim, layout: Layout) -> None:
    ranges = shard_ranges(dim, layout)
    assert len(ranges) == degree_of(dim, layout)
    assert max(map(len, ranges)) == shard_size(dim, layout)
    elements = [element for shard in ranges for element in shard]
    copies = max(1, len(ranges) // dim.units) if dim.axis == "kv_heads" else 1
    assert sorted(elements) == sorted(list(range(dim.size)) * copies)
    assert all(edge % (dim.size // dim.units) == 0 for shard in ranges for edge in (shard.start, shard.stop))


@given(graphs())
def test_devices_together_hold_at_least_the_model(graph: LayerGraph) -> None:
    whole = weigh(graph, BF16).bytes
    for layout in legal_grids(graph):
        assert fullest_bytes(graph, layout) * layout.num_devices >= whole


def is_cut(parameter: Parameter) -> bool:
    return any(dim.axis in MESH_AXIS for dim in parameter.dims)


@given(graphs(vision=False))
def test_what_no_axis_cuts_is_whole_on_every_device(graph: LayerGraph) -> None:
    whole = [(n, p) for n, p in graph.parameters() if not is_cut(p)]
    assert all(shard_shape(node, p, Layout(tp=8, ep=8)) == p.shape for node, p in whole)


@given(graphs(), st.integers(1, 400), st.integers(1, 5))
def test_an_ideal_cache_grows_linearly_until_each_layer_reaches_its_bound(
    graph: LayerGraph, context: int, batch: int
) -> None:
    cache = plan_cache(graph, engine("ideal"), dtype="bf16", context=context, batch=batch)
    growing = [row for row in cache.layers if row.law != "state"]
    states = sum(row.num_layers * row.bytes for row in cache.layers if row.law == "state")
    kept = [row.num_layers * row.bytes_per_token_per_layer * min(context, row.bound or context) for row in growing]
    assert cache.bytes == batch * (sum(kept) + states)
    assert cache.bytes <= batch * (context * cache.bytes_per_token_unbounded + states)
    assert cache.bytes >= batch * (context * cache.bytes_per_token_global + states)


def uniform(graph: LayerGraph) -> bool:
    """Whether all caching layers keep the same bytes per token, which engines with layer groups need."""
    return len({row.bytes_per_token for row in model_rows(graph, Layout(), 2) if not row.bound.is_state}) <= 1


@given(graphs(), st.sampled_from(ENGINES), st.integers(1, 400), st.integers(1, 5))
def test_no_engine_keeps_less_for_more_tokens_or_sequences(
    graph: LayerGraph, name: str, context: int, batch: int
) -> None:
    rows = model_rows(graph, Layout(), 2)
    if engine(name).kv.kind == "layer_groups" and not uniform(graph):
        rows = tuple(row._replace(bytes_per_token=8) for row in rows)
    now = cache_bytes(rows, engine(name), context, batch)
    assert now <= cache_bytes(rows, engine(name), context + 1, batch)
    assert now <= cache_bytes(rows, engine(name), context, batch + 1)
    assert now >= cache_bytes(rows, engine("ideal"), context, batch)


@given(graphs(), st.integers(1, 400))
def test_fewer_bits_of_cache_never_take_more_bytes(graph: LayerGraph, context: int) -> None:
    sizes, states = {}, {}
    for dtype in ("fp32", "bf16", "fp16", "fp8", "int8"):
        layers = plan_cache(graph, engine("ideal"), dtype=dtype, context=context, batch=2).layers
        sizes[dtype] = sum(row.num_layers * row.bytes for row in layers if row.law != "state")
        states[dtype] = sum(row.num_layers * row.bytes for row in layers if row.law == "state")
    assert sizes["fp32"] == 2 * sizes["bf16"] == 2 * sizes["fp16"] == 4 * sizes["fp8"] == 4 * sizes["int8"]
    # states are summed up in fp32, and what a convolution keeps is in the model's format
    assert states["fp32"] >= states["bf16"] == states["fp16"] == states["fp8"] == states["int8"]


@given(graphs(step=256), st.sampled_from([n for n in shipped_names("quantization") if n != "fp32"]))
def test_a_quantized_model_is_never_larger_than_bf16(graph: LayerGraph, name: str) -> None:
    try:
        weights = weigh(graph, scheme_of(quantization(name)))
    except UserError:  # a scheme that cannot pack says so, and nothing is weighed
        return
    assert weights.bytes <= weigh(graph, BF16).bytes


@given(graphs(bidirectional=False), st.integers(1, 200), st.integers(1, 4))
def test_prefilling_one_token_more_costs_one_decode_step(graph: LayerGraph, tokens: int, batch: int) -> None:
    shorter = model_flops(graph, Work(batch, tokens, num_logits=0))
    longer = model_flops(graph, Work(batch, tokens + 1, num_logits=0))
    step = model_flops(graph, Work(batch, 1, tokens, phase="decode", num_logits=0))
    assert longer - shorter == step


@given(graphs(bidirectional=False), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_prompt_in_pieces_costs_what_it_costs_whole(graph: LayerGraph, pieces: list[int]) -> None:
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    parts = [model_flops(graph, Work(2, n, start, num_logits=0)) for n, start in zip(pieces, starts, strict=True)]
    assert sum(parts) == model_flops(graph, Work(2, sum(pieces), num_logits=0))


@given(graphs(), st.integers(1, 300), st.integers(1, 3), st.integers(0, 3))
def test_flops_are_those_of_the_whole_cost_sheet(graph: LayerGraph, tokens: int, batch: int, num_tiles: int) -> None:
    work = Work(batch, tokens)
    tiles = num_tiles if graph.model.vision else 0
    assert model_flops(graph, work, tiles) == cost(graph, PassTokens(work, tiles)).flops
    assert count_flops(graph, context=tokens, batch=batch).train_step == 3 * model_flops(graph, work)


@given(graphs(), st.integers(1, 3))
def test_a_plan_without_gpus_holds_the_whole_model_on_one_device(graph: LayerGraph, batch: int) -> None:
    planned = plan(graph, batch=batch)
    memory = planned.memory_per_device
    assert memory.weights_bytes == planned.weights.bytes
    assert memory.kv_cache_bytes == planned.kv_cache.bytes
    assert memory.total_bytes == sum(term.bytes for term in memory.terms)
    assert planned.fits is None
    assert planned == plan(graph, batch=batch)
    assert type(planned).model_validate_json(planned.model_dump_json()) == planned
