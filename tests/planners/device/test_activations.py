"""Peak activations by hand: the widest layer over a prefill chunk, logits, tiles; and what pipelines keep."""

import pytest

from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import split_layers
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.device.activations import activation_rates
from planners.device.stages import stages
from planners.device.training_state import TrainSetting, stage_state
from planners.plan import plan
from tests.planners.models import graph

HIDDEN, HEADS, KV, EXPERT, VOCAB = 5120, 5120, 1024, 8192, 202_048
BF16, FP32 = 2, 4


def moe_bytes(tp: int) -> int:
    """A token in Scout's MoE layer: input, gate, up and product, the expert's output and the combined one."""
    return BF16 * (3 * HIDDEN + 3 * EXPERT // tp)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_token_takes_the_residual_stream_twice_and_the_widest_layer(tp: int) -> None:
    rates = activation_rates(graph("scout"), tp, 1)
    attention = BF16 * (HIDDEN + 2 * HEADS // tp + 2 * KV // tp)
    assert rates.per_token == 2 * BF16 * HIDDEN + max(moe_bytes(tp), attention)
    assert rates.widest == "ffn (moe)"
    assert rates.per_logit_row == FP32 * VOCAB // tp


@pytest.mark.parametrize(
    ("context", "batch", "chunk", "tokens"),
    [(100, 1, 8192, 100), (100, 3, 8192, 300), (10_000, 1, 8192, 8192), (10_000, 1, 512, 512), (10_000, 700, 512, 700)],
)
def test_a_step_sees_a_prefill_chunk_or_one_token_of_every_sequence(
    context: int, batch: int, chunk: int, tokens: int
) -> None:
    memory = plan(graph("scout"), context=context, batch=batch, prefill_chunk=chunk).memory_per_device
    assert memory.activation_bytes == tokens * (2 * BF16 * HIDDEN + moe_bytes(1)) + batch * FP32 * VOCAB


def test_enough_image_tiles_are_the_widest_moment() -> None:
    none, few, many = (
        plan(graph("scout"), context=100, num_tiles=tiles).memory_per_device.activation_bytes for tiles in (0, 1, 64)
    )
    assert few >= none
    assert many == 64 * activation_rates(graph("scout"), 1, 1).per_tile
    patches, width, wide = 577, 1408, 5632
    assert activation_rates(graph("scout"), 1, 1).per_tile == BF16 * patches * (2 * width + width + 2 * wide)


def test_stages_keep_fewer_micro_batches_the_further_behind_they_stand() -> None:
    """Stage s of p keeps p - s micro-batches in flight (one forward, one backward)."""
    model, train = graph("scout"), TrainSetting(checkpointing="none")
    layout, context, sequences = Layout(pp=4), 128, 64
    result = stages(model, scheme_of(quantization("bf16")), 1, 1, 4)
    kept = {s.index: stage_state(model, train, layout, s).with_batch(context, sequences).activations for s in result}
    one = {s.index: stage_state(model, train, layout, s).with_batch(context, 1).activations for s in result}
    assert {index: kept[index] / one[index] for index in (0, 1)} == {0: 4.0, 1: 3.0}
    assert kept[3] == one[3]


@pytest.mark.parametrize(
    ("num_layers", "pp", "sizes"),
    [
        (48, 4, [12, 12, 12, 12]),
        (5, 2, [3, 2]),
        (5, 3, [2, 2, 1]),
        (6, 4, [1, 2, 2, 1]),
        (126, 8, [15, 16, 16, 16, 16, 16, 16, 15]),
    ],
)
def test_left_over_layers_go_one_each_to_the_stages_before_the_last(num_layers: int, pp: int, sizes: list[int]) -> None:
    """As vLLM's get_pp_indices lays them: the last stage has the head to do."""
    assert [len(stage) for stage in split_layers(num_layers, pp)] == sizes
