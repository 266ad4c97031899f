"""No number in a plan that a run cannot confirm: laws that hold the planner against modules of random models."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.ledger import MOST_FEW_ROWS
from l4spec.layers.declaration import Work
from l4spec.runtime.build import build
from l4spec.runtime.measure.flops import FORMULAS, counting_flops
from l4spec.runtime.measure.run import RunShape
from l4spec.runtime.module_inventory import contents_of
from l4spec.spec.model import ModelSpec
from l4spec.spec.scale import parse_scale, scale_spec
from planners.catalog import engine, quantization
from planners.counts.cost_sheet import PassTokens, cost
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from planners.counts.weights import scheme_of, weigh
from planners.module.activation_ledger import activation_bytes
from planners.module.executed import executed_rows
from tests.properties.runs import (
    ITEM_BYTES,
    decoded,
    longest_prompt,
    measured,
    planned_flops,
    small_blocks,
    some,
    tokens,
)
from tests.runtime.tiny import MLA, ROPE, gqa, graph_of, moe, text_of
from tests.strategies import graphs, model_specs

CHUNKS = {"kind": "chunked", "size": 2}
LENGTHS, BATCHES = st.integers(1, 90), st.integers(1, 3)
PIECES = st.lists(st.integers(1, 50) | st.just(1), min_size=2, max_size=4)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@given(graphs(), st.sampled_from(["fp32", "bf16"]))
def test_planned_parameters_are_those_held_part_by_part_and_planned_bytes_those_stored(
    graph: LayerGraph, dtype: str
) -> None:
    model = build(graph, dtype=dtype, seed=None)
    assert contents_of(model).by_part == some(count_params(graph).by_part)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert stored == weigh(graph, scheme_of(quantization(dtype))).bytes


@given(graphs(), LENGTHS, BATCHES)
def test_executed_flops_of_a_prefill_are_counted_layer_by_layer(graph: LayerGraph, length: int, batch: int) -> None:
    model, length = build(graph, dtype="fp32"), min(length, longest_prompt(graph))
    ids = tokens(model, batch, length)
    with torch.no_grad(), counting_flops(model) as counted:
        model(ids)
    assert some(counted) == planned_flops(graph, Work(batch, length))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as torchs:
        model(ids)
    assert torchs.get_total_flops() == counted.total()


@given(graphs(bidirectional=False), PIECES, BATCHES, st.sampled_from([3, 16, 512]))
def test_executed_flops_behind_a_cache_are_counted_layer_by_layer(
    graph: LayerGraph, pieces: list[int], batch: int, block: int
) -> None:
    assume(sum(pieces) <= longest_prompt(graph))
    with small_blocks(block):
        for work, counted in decoded(build(graph, dtype="fp32"), batch, pieces):
            assert counted == planned_flops(graph, work)


@given(graphs(), LENGTHS, BATCHES)
def test_executed_flops_of_training_are_counted_layer_by_layer(graph: LayerGraph, length: int, batch: int) -> None:
    model, length = build(graph, dtype="fp32"), min(length, longest_prompt(graph))
    with counting_flops(model) as counted:
        model(tokens(model, batch, length)).sum().backward()
    assert some(counted) == planned_flops(graph, Work(batch, length, phase="train"))


def has_windows_of_one_patch(graph: LayerGraph) -> bool:
    """A patch that attends to itself alone: torch copies nothing for a single row, and the plan counts the copies."""
    masks = (getattr(node.spec, "mask", None) for node in graph.nodes if node.scope == "vision")
    return any(mask is not None and mask.kind == "grid_window" and mask.size == 1 for mask in masks)


@given(graphs(vision=True), st.integers(1, 3), st.booleans())
def test_executed_flops_and_the_activation_peak_of_images_are_as_planned(
    graph: LayerGraph, tiles: int, train: bool
) -> None:
    vision, text = graph.model.vision, graph.model.text
    assert vision is not None
    length = tiles * vision.num_tokens_per_tile + 4
    assume(tiles * vision.num_tokens_per_tile > MOST_FEW_ROWS)
    assume(length <= longest_prompt(graph) and text.embedding.vocab_size > 2)
    assume(not has_windows_of_one_patch(graph))
    measurement = measured(graph, RunShape(length, 0, tiles=tiles, training=train), "prefill", "training", "memory")
    work = Work(1, length, num_logits=1)
    assert some(measurement.prefill_flops) == planned_flops(graph, work, tiles)
    peak = activation_bytes(graph, work, num_tiles=tiles, item_bytes=4, expert_load=measurement.expert_load)
    assert measurement.activation_bytes is not None
    assert measurement.activation_bytes <= peak <= 1.25 * measurement.activation_bytes
    if train:
        planned = planned_flops(graph, Work(1, length, phase="train"), tiles)
        assert some({name: n for name, n in measurement.training_flops.items() if name}) == planned


@given(graphs(), st.integers(0, 300), st.integers(0, 300), BATCHES, st.sampled_from(["prefill", "decode", "train"]))
def test_the_mathematics_never_need_more_flops_than_are_run(
    graph: LayerGraph, length: int, past: int, batch: int, phase: str
) -> None:
    work = Work(batch, length, 0 if phase == "train" else past, phase=phase)  # type: ignore[arg-type]
    needed = {id(row.group.first): row.flops for row in cost(graph, PassTokens(work)).rows}
    for row in executed_rows(graph, work):
        assert needed[id(row.group.first)] <= row.group.count * row.forward_flops


@given(graphs(bidirectional=False), st.integers(1, 200), BATCHES, st.sampled_from(["fp32", "bf16"]))
def test_planned_cache_bytes_are_those_allocated_at_every_length(
    graph: LayerGraph, length: int, batch: int, dtype: str
) -> None:
    model = build(graph, "meta", dtype)
    for context in {1, length, length + 1, 2 * length}:
        planned = plan_cache(graph, engine("ideal"), dtype=dtype, context=context, batch=batch)
        assert model.new_cache(batch, context).num_bytes == planned.bytes


@given(graphs(), st.data())
def test_every_declared_parameter_is_used_and_gets_a_gradient(graph: LayerGraph, data: st.DataObject) -> None:
    vision = graph.model.vision
    tiles = data.draw(st.integers(0, 2)) if vision and graph.model.text.embedding.vocab_size > 2 else 0
    places = tiles * vision.num_tokens_per_tile if vision else 0
    assume(places + 1 <= longest_prompt(graph))
    model = build(graph, dtype="fp32").train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    ids = tokens(model, 2, min(places + 40, longest_prompt(graph)))
    pixels = None
    if vision and tiles:
        model.image_token_id = graph.model.text.embedding.vocab_size - 1
        ids = torch.where(ids == model.image_token_id, 0, ids)
        ids[0, :places] = model.image_token_id
        patches = vision.patch_embedding
        pixels = torch.randn(tiles, patches.num_channels, patches.image_size, patches.image_size)
    model(ids, pixel_values=pixels).sum().backward()
    reached = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert [name for name in reached if tiles or not name.startswith("vision.")] == []


@given(graphs(), st.integers(4, 90), BATCHES, st.sampled_from(["fp32", "bf16"]), st.sampled_from([5, 512]))
def test_the_planned_activation_peak_is_at_least_the_measured_one_and_at_most_a_quarter_more(
    graph: LayerGraph, length: int, batch: int, dtype: str, block: int
) -> None:
    length = min(length, longest_prompt(graph))
    assume(length > MOST_FEW_ROWS)
    assert_peak_as_planned(graph, length, batch, dtype, block)


def assert_peak_as_planned(graph: LayerGraph, length: int, batch: int, dtype: str, block: int) -> None:
    """At least the measured one and at most a quarter more, also with the load of experts unknown."""
    with small_blocks(block):
        measurement = measured(graph, RunShape(length, 0, batch), "prefill", "memory", dtype=dtype)
        planned = activation_bytes(
            graph,
            Work(batch, length, num_logits=1),
            item_bytes=ITEM_BYTES[dtype],
            expert_load=measurement.expert_load,
        )
        bound = activation_bytes(graph, Work(batch, length, num_logits=1), item_bytes=ITEM_BYTES[dtype])
    assert measurement.activation_bytes is not None
    assert measurement.activation_bytes <= planned <= 1.25 * measurement.activation_bytes
    assert planned <= bound  # without the load, every token may choose one expert


NARROW_MLA = MLA | {"num_heads": 1, "q_lora_rank": None, "kv_lora_rank": 1, "qk_nope_head_dim": 1, "v_head_dim": 1}
NARROW = NARROW_MLA | {"qk_rope_head_dim": 2, "position": {"kind": "none"}}
FOUND = {
    "chunks are unfolded": (gqa(num_heads=3, num_kv_heads=1, mask=CHUNKS, position=ROPE, logit_softcap=1.0), 5, "fp32"),
    "a bias after heads of width 1": (NARROW | {"bias": True, "mask": {"kind": "causal"}}, 16, "fp32"),
    "the mask of a window": (NARROW | {"mask": {"kind": "sliding_window", "size": 1}}, 4, "bf16"),
    "two rows of an expert": (moe(num_experts=2, num_experts_per_token=1, intermediate_size=6), 4, "fp32"),
    "values wider than keys": (
        gqa(num_heads=2, num_kv_heads=1, head_dim=1, v_head_dim=2, mask={"kind": "none"}, position={"kind": "none"}),
        4,
        "fp32",
    ),
    "a scan of several sequences in chunks": (
        {"kind": "mamba2", "num_groups": 2, "num_heads": 2, "head_dim": 4, "state_size": 4},
        6,
        "bf16",
    ),
}
SEVERAL_SEQUENCES = {"a scan of several sequences in chunks": 3}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("hidden_size", [1, 2, 16])
def test_peaks_that_long_runs_found_planned_wrong_stay_planned_right(name: str, hidden_size: int) -> None:
    part, length, dtype = FOUND[name]
    layer = {"ffn": "part"} if part["kind"] == "moe" else {"attention": "part"}
    graph = graph_of(text_of({"part": part}, [layer], hidden_size=hidden_size, vocab_size=2))
    assert_peak_as_planned(graph, length, SEVERAL_SEQUENCES.get(name, 1), dtype, 5)


@given(model_specs(), st.sampled_from(["tiny", "1/2", "1/7"]))
def test_a_miniature_keeps_the_laws(spec: ModelSpec, scale: str) -> None:
    graph = l4spec.compile(scale_spec(spec, parse_scale(scale)))
    length = min(20, longest_prompt(graph))
    measurement = measured(graph, RunShape(length, 0, cache_lengths=(1, length)), "weights", "prefill", "caches")
    assert measurement.params_by_part == some(count_params(graph).by_part)
    assert some(measurement.prefill_flops) == planned_flops(graph, Work(1, length, num_logits=1))
    if graph.can_cache:
        for context, num_bytes in measurement.cache_bytes.items():
            assert plan_cache(graph, engine("ideal"), dtype="fp32", context=context, batch=1).bytes == num_bytes
