"""What a device sends in a training step, against formulas written out by hand, and laws over stages and layouts."""

from dataclasses import replace

import pytest

from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.collectives.communication import communication
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import stage_traffic
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import TrainSetting
from planners.plan import plan
from planners.plan_types import CollectiveTraffic
from tests.planners.models import graph

STREAM = 5120 * 2
FULL = TrainSetting(checkpointing="full", micro_batch=1)
BF16 = scheme_of(quantization("bf16"))


def sent(
    layout: Layout,
    train: TrainSetting = FULL,
    *,
    name: str = "scout",
    stage: int = 0,
    batch: int = 8,
    context: int = 1024,
) -> dict[tuple[str, str], CollectiveTraffic]:
    model = graph(name)
    load = StepTokens.of(train, layout, context, batch)
    result = stages(model, BF16, layout.tp, layout.ep, layout.pp)
    rows = stage_traffic(model, train, layout, load, result[stage], 8).rows
    assert len({(row.axis, row.collective, row.what) for row in rows}) == len(rows)
    return {(row.axis, row.what): row for row in rows}


def test_one_device_sends_nothing() -> None:
    assert sent(Layout()) == {}


def test_tensor_parallelism_reduces_forward_backward_and_recomputed() -> None:
    """48 blocks of two layers; the embedding forward, the head backward; 8 sequences of 1,024 tokens.

    Of a block that runs once more nothing needs what its last layer gives.
    """
    rows, tokens = sent(Layout(tp=4)), 8 * 1024
    for name, count in (("forward", 97), ("backward", 97), ("recomputed", 48)):
        row = rows["tp", f"activations, {name}"]
        assert (row.payload_bytes, row.calls) == (count * tokens * STREAM, count * 8)
        assert row.ring_bytes == count * tokens * STREAM * 2 * 3 // 4
    assert rows["tp", "loss over the divided vocabulary"].payload_bytes == tokens * 3 * 4
    for checkpointing in ("none", "selective"):
        kept = sent(Layout(tp=4), replace(FULL, checkpointing=checkpointing))
        assert ("tp", "activations, recomputed") not in kept


def test_sequence_parallelism_sends_sums_in_halves_and_gathers_once_more() -> None:
    """48 blocks of two layers, an embedding and a head: of each all-reduce both halves, inputs again for gradients."""
    train = TrainSetting(checkpointing="none", sequence_parallel=True)
    load, layout = StepTokens.of(train, Layout(tp=4), 1024, 8), Layout(tp=4)
    (stage,) = stages(graph("scout"), BF16, 4, 1, 1)
    rows = stage_traffic(graph("scout"), train, layout, load, stage, 8).rows
    calls = {(row.collective, row.what): row.calls // 8 for row in rows if row.what.startswith("activations")}
    assert calls == {
        ("all-gather", "activations, forward"): 97,
        ("reduce-scatter", "activations, forward"): 97,
        ("all-gather", "activations, backward"): 97 + 97,
        ("reduce-scatter", "activations, backward"): 97,
    }
    whole = sent(layout, replace(train, sequence_parallel=False))
    forward = [row for row in rows if row.what == "activations, forward"]
    assert sum(row.ring_bytes for row in forward) == whole["tp", "activations, forward"].ring_bytes
    norms = 97 * 5120 * 4
    what = "gradients of replicated tensors"
    assert next(row for row in rows if row.what == what).payload_bytes == whole["tp", what].payload_bytes + norms


def test_stages_hand_on_a_share_of_the_tokens() -> None:
    split = sent(Layout(tp=2, pp=2), replace(FULL, sequence_parallel=True))
    whole = sent(Layout(tp=2, pp=2))
    key = ("pp", "activations, forward")
    assert 2 * split[key].payload_bytes == whole[key].payload_bytes


def test_the_forward_pass_of_training_sends_what_a_forward_pass_sends() -> None:
    """The same bytes per token as `communication`, axis by axis, stages together."""
    for layout in (Layout(tp=2), Layout(ep=4), Layout(tp=2, ep=2), Layout(pp=4)):
        planned = [row for row in communication(graph("scout"), layout) if row.collective != "all-gather"]
        per_token = {row.axis: row.payload_bytes_per_token for row in planned}
        rows = sent(layout)
        tokens = 8 * 1024 // layout.ep
        for axis, name in (
            ("tp", "activations, forward"),
            ("ep", "routed tokens, forward"),
            ("pp", "activations, forward"),
        ):
            if axis in per_token:
                assert rows[axis, name].payload_bytes == tokens * (per_token[axis] or 0)


def test_routed_tokens_go_there_and_back_in_every_pass() -> None:
    rows = sent(Layout(ep=4), name="maverick")
    for name in ("forward", "backward", "recomputed"):
        row = rows["ep", f"routed tokens, {name}"]
        assert row.payload_bytes == 24 * 2 * (2 * 1024) * STREAM
        assert row.ring_bytes == row.payload_bytes * 3 // 4
        assert row.calls == 24 * 2 * 2


def test_a_stage_in_the_middle_sends_both_ways_and_the_ends_one() -> None:
    layout = Layout(pp=4)
    actual = stages(graph("scout"), BF16, 1, 1, 4)
    kinds = [{what for axis, what in sent(layout, stage=at) if axis == "pp"} for at in range(len(actual))]
    forward, backward = {"activations, forward"}, {"gradients, backward"}
    expected = {(True, False): forward, (False, False): forward | backward, (False, True): backward}
    assert kinds == [expected[stage.first, stage.last] for stage in actual]


@pytest.mark.parametrize(
    ("zero", "times", "collective", "gathers"),
    [(0, 1, "all-reduce", 0), (1, 1, "reduce-scatter", 1), (2, 4, "reduce-scatter", 1), (3, 4, "reduce-scatter", 8)],
)
def test_gradients_and_weights_go_by_zero_stage(zero: int, times: int, collective: str, gathers: int) -> None:
    """Scout at ep 2, dp 2: four micro-batches a rank; a device holds half the experts and all other weights."""
    params = plan(graph("scout")).params
    experts = params.by_part["routed_experts"]
    blocks = 48 * (62_914_560 + 125_829_120 + 81_920 + 10_240)
    states = {
        ("dp_ep", "dense weights of blocks"): (blocks, 4, gathers),
        ("dp_ep", "weights outside blocks"): (params.total - experts - blocks, 4, 4 if zero == 3 else gathers),
        ("dp", "experts"): (experts // 2, 2, gathers),
    }
    rows = sent(Layout(ep=2, dp=2), replace(FULL, zero_stage=zero), batch=16)
    for (axis, what), (number, ranks, num_gathers) in states.items():
        row = rows[axis, f"gradients of {what}"]
        assert (row.collective, row.calls, row.ranks) == (collective, times, ranks)
        assert row.payload_bytes == times * number * 4
        factor = 2 if zero == 0 else 1
        assert row.ring_bytes == factor * row.payload_bytes * (ranks - 1) // ranks
        gathered = rows.get((axis, what))
        assert (gathered.payload_bytes if gathered else 0) == num_gathers * number * 2


def test_ranks_add_up_the_gradients_of_what_they_hold_whole_inside_a_layer() -> None:
    """Routers of 48 layers, 16 x 5,120 each; with ZeRO 3 the shards of four ranks, and no row for dense layers."""
    whole = sent(Layout(tp=2, dp=4))["tp", "gradients of replicated tensors"]
    assert (whole.payload_bytes, whole.calls) == (48 * 81_920 * 4, 1)
    shards = sent(Layout(tp=2, dp=4), replace(FULL, zero_stage=3))["tp", "gradients of replicated tensors"]
    assert shards.payload_bytes == whole.payload_bytes // 4
    assert ("tp", "gradients of replicated tensors") not in sent(Layout(tp=2), name="llama-3.1-8b")


def test_neighbours_add_up_the_gradients_of_a_kv_head_that_they_repeat() -> None:
    """Llama 3.1 70B has 64 heads over 8 KV heads: at tp 32 four ranks hold each, keys and values of 128 x 8,192."""
    row = sent(Layout(tp=32), name="llama-3.1-70b")["tp", "gradients of repeated KV heads"]
    assert row.payload_bytes == 80 * 2 * 128 * 8192 * 4
    assert row.ranks == 4
    assert row.ring_bytes == 2 * row.payload_bytes * 3 // 4
    assert row.inter_host_bytes == 0, "four neighbours share a host"
    assert ("tp", "gradients of repeated KV heads") not in sent(Layout(tp=8), name="llama-3.1-70b")


def test_tiers_add_up_to_what_is_sent() -> None:
    planned = plan(graph("maverick"), gpus="512xH100", mode="train", batch=1024, tp=4, ep=16, pp=2, dp=4)
    assert planned.train_traffic is not None
    for row in planned.train_traffic.rows:
        assert row.intra_host_bytes is not None
        assert row.inter_host_bytes is not None
        assert row.intra_host_bytes + row.inter_host_bytes == row.ring_bytes
        assert (row.inter_host_bytes == 0) == (row.axis == "tp")
    for token in planned.communication:
        assert (token.intra_host_bytes_per_token or 0) + (
            token.inter_host_bytes_per_token or 0
        ) == token.bytes_per_token


def test_serving_has_no_training_traffic_and_no_tiers_without_gpus() -> None:
    assert plan(graph("scout"), gpus="8xH100").train_traffic is None
    assert all(row.inter_host_bytes_per_token is None for row in plan(graph("scout"), tp=8).communication)
