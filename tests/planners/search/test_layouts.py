"""Which layouts a model allows, what they hold, and which one is chosen."""

from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.graph.build import build_graph
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_ranges, shard_shape
from planners.plan import plan
from planners.timing.expert_coverage import parts
from tests.cpu_time import takes_at_most
from tests.planners.models import graph


def test_kv_heads_are_repeated_when_tp_exceeds_them() -> None:
    wide = graph("scout", "text.parts.global.num_kv_heads=2", "text.parts.local.num_kv_heads=2")
    per_device = [plan(wide, tp=tp).memory_per_device.kv_cache_bytes for tp in (1, 2, 4, 8)]
    assert per_device[0] == 2 * per_device[1]
    assert per_device[1] == per_device[2] == per_device[3]
    node = wide.by_id["text.layers.0.attention"]
    key = next(p for p in node.declaration.parameters if p.name == "k_proj.weight")
    assert shard_shape(node, key, Layout(tp=8)) == (128, 5120)
    heads = [shard.start // 128 for shard in shard_ranges(key.dims[0], Layout(tp=8))]
    assert heads == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("degrees", "reason"),
    [
        ({"tp": 3}, "tp=3 does not divide 40 (query heads)"),
        ({"tp": 16}, "tp=16 does not divide 40 (query heads)"),
        ({"tp": 5}, "tp=5 neither divides the 8 KV heads nor is a multiple of them"),
        ({"ep": 3, "engine": "sglang-hybrid"}, "ep=3 does not divide 16 (experts)"),
        ({"ep": 3, "mode": "train"}, "ep=3 does not divide 16 (experts)"),
        ({"ep": 32}, "ep=32 does not divide 16 (experts)"),
        ({"pp": 49}, "pp=49 exceeds the 48 layers"),
    ],
)
def test_an_illegal_layout_is_refused_with_its_reason(degrees: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(graph("scout"), **degrees)
    assert [problem.message for problem in caught.value.problems] == [reason]


def test_uneven_expert_parallelism_is_planned_by_the_fullest_rank() -> None:
    """128 experts on 6 GPUs are 22, 22, 21, 21, 21, 21 (vllm-project/vllm#21497, NVIDIA/TensorRT-LLM#13888)."""
    model = graph("compare/qwen3-30b-a3b")
    uneven = plan(model, gpus="6xH100", tp=1, ep=6)
    assert uneven.memory_per_device.weights_bytes == 13_047_853_056
    experts = plan(model).weights.by_part["routed_experts"]
    rest = plan(model).memory_per_device.weights_bytes - experts
    assert uneven.memory_per_device.weights_bytes == rest + 22 * (experts // 128)
    assert [len(part) for part in parts(128, 6)] == [22, 22, 21, 21, 21, 21]
    even, latency = plan(model, gpus="8xH100", tp=1, ep=8).latency, uneven.latency
    assert even is not None
    assert latency is not None
    assert (latency.time_per_output_token_bound_seconds or 0) > (even.time_per_output_token_bound_seconds or 0)


@pytest.mark.parametrize(("experts", "ranks"), [(16, 16), (16, 5), (7, 3), (128, 6)])
def test_parts_of_experts_are_all_of_them_in_order(experts: int, ranks: int) -> None:
    assert [expert for part in parts(experts, ranks) for expert in part] == [*range(experts)]
    sizes = [len(part) for part in parts(experts, ranks)]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == sizes[0] == -(-experts // ranks)


def test_a_dense_model_has_no_experts_to_divide() -> None:
    with pytest.raises(UserError, match="needs experts, and the model has none"):
        plan(graph("llama-guard-4-12b"), ep=2)


def test_degrees_whose_product_does_not_divide_the_gpus_are_refused_with_the_product() -> None:
    with pytest.raises(UserError, match=r"tp=8 x ep=1 x pp=3 x dp=1 = 24 devices do not divide the 32 GPUs"):
        plan(graph("scout"), gpus="32xH100", tp=8, pp=3)


def test_an_uneven_vocabulary_is_rounded_up_on_the_first_ranks() -> None:
    odd = graph("scout", "text.vocab_size=202049")
    head = odd.by_id["text.head"]
    (weight,) = head.declaration.parameters
    assert shard_shape(head, weight, Layout(tp=8)) == (25_257, 5120)
    assert [len(shard) for shard in shard_ranges(weight.dims[0], Layout(tp=8))] == [25_257] * 7 + [25_250]


def test_vision_heads_that_tp_does_not_divide_are_cut_as_far_as_they_go() -> None:
    """16 vision heads on tp=40, which the text's 40 query heads and 8 KV heads allow."""
    wide = graph("scout", "text.parts.moe.intermediate_size=10240")
    node = wide.by_id["vision.layers.0.attention"]
    query = next(p for p in node.declaration.parameters if p.name == "q_proj.weight")
    assert shard_shape(node, query, Layout(tp=40)) == (2 * 88, 1408)
    assert plan(wide, tp=40).memory_per_device.weights_bytes < plan(wide, tp=8).memory_per_device.weights_bytes


def test_a_pipeline_of_uneven_stages_counts_the_worst_one() -> None:
    planned = plan(graph("scout"), gpus="5xH100", tp=1, ep=1, pp=5)
    layer = planned.params.by_layer[0].total * 2
    weights = planned.memory_per_device.weights_bytes
    assert weights == pytest.approx(10 * layer, rel=0.1)
    assert weights >= 10 * layer


def test_a_tied_table_is_held_at_both_ends_of_a_pipeline() -> None:
    tied = graph("mobilellm-r1-950m")
    table = tied.by_id["text.embedding"].declaration.num_parameters * 2
    first_and_last = plan(tied, pp=22).memory_per_device.weights_bytes
    layer = plan(tied).params.by_layer[0].total * 2
    assert first_and_last == table + layer + 2 * 1536  # the last stage: head's copy, one block, the final norm


def test_sequences_are_divided_among_the_data_and_expert_parallel_ranks_rounding_up() -> None:
    one = plan(graph("scout"), gpus="8xH100", tp=1, ep=2, pp=1, dp=4, batch=1).memory_per_device
    for batch, most in ((8, 1), (9, 2), (16, 2), (17, 3)):
        result = plan(graph("scout"), gpus="8xH100", tp=1, ep=2, pp=1, dp=4, batch=batch).memory_per_device
        assert result.kv_cache_bytes == most * one.kv_cache_bytes


def test_a_scheme_that_cannot_pack_the_shards_of_a_degree_says_so() -> None:
    """o_proj of 40 heads of 96: groups of 128 divide 3,840 whole, and 1,920 on two, but not 480 on eight."""
    odd = [f"text.parts.{part}.head_dim=96" for part in ("local", "global")]
    planned = plan(graph("scout", *odd), gpus="8xH100", quantization="w4a16")
    refused = {row.layout.tp: row.reason for row in planned.illegal_layouts if "w4a16 cannot store it" in row.reason}
    assert 8 in refused
    assert "groups of 128 do not divide the 480 weights" in refused[8]
    assert {row.layout.tp for row in planned.layouts} == {1, 2}


def test_a_scheme_that_cannot_pack_the_model_is_refused_whatever_the_gpus() -> None:
    with pytest.raises(UserError, match="groups of 128 do not divide"):
        plan(graph("scout", "text.parts.moe.intermediate_size=8200"), quantization="w4a16")


def test_the_balanced_choice_is_as_wide_as_a_host_and_no_wider() -> None:
    assert plan(graph("scout"), gpus="8xH100").layout == Layout(tp=8)
    assert plan(graph("scout"), gpus="2x8xH100").layout == Layout(tp=8, dp=2)
    assert plan(graph("maverick"), gpus="2x8xH100").layout == Layout(tp=8, ep=2)
    assert plan(graph("scout"), gpus="4xH100").layout == Layout(tp=4)


def test_the_fewest_gpus_a_replica_leave_the_rest_to_data_parallelism() -> None:
    planned = plan(graph("scout"), gpus="8xH100", quantization="w4a16", objective="min-gpus")
    assert planned.layout == Layout(dp=8)


def test_the_longest_context_takes_every_gpu_for_one_sequence() -> None:
    planned = plan(graph("scout"), gpus="8xH100", objective="max-context", context=1_000_000)
    assert planned.max_context == max(row.max_context for row in planned.layouts)
    assert planned.layout.dp == planned.layout.ep == 1


@pytest.mark.parametrize("mode", ["serve", "train"])
def test_the_largest_cluster_is_planned_in_seconds(mode: str) -> None:
    models = [build_graph(graph("behemoth").model) for _ in range(4)]
    planned = plan(models.pop(), gpus="32768xH100", mode=mode, batch=16_384)
    assert takes_at_most(3, lambda: plan(models.pop(), gpus="32768xH100", mode=mode, batch=16_384))
    assert planned.fits
    assert planned.layout.num_devices == 32_768
