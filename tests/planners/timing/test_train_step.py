"""Training steps: laws over layouts, recomputation and pipelines."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import l4spec
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import split_layers
from l4spec.units import ceil_div
from planners import plan
from planners.catalog import hardware, quantization
from planners.counts.flops import model_flops
from planners.counts.weights import scheme_of
from planners.device.stages import every_stage
from planners.device.training_state import TrainSetting, updated_bytes
from planners.evidence.rows import published_rows
from planners.evidence.training_replay import predict_training
from planners.timing.efficiency import training_efficiency
from planners.timing.machine import Machine
from planners.timing.matmul_traffic import matmul_traffic
from planners.timing.training_report import with_the_rest
from planners.timing.training_step import TrainLoad, TrainModel, communication_seconds

LOAD = TrainLoad(sequences=128, length=8192, num_devices=64)


def trained(
    spec: str = "llama-3.1-70b", device: str = "h100-sxm", scheme: str = "bf16", overrides: tuple[str, ...] = ()
) -> TrainModel:
    graph = l4spec.compile(l4spec.load(spec, overrides))
    return TrainModel(graph, scheme_of(quantization(scheme)), Machine(hardware(device), 8), training_efficiency(device))


def estimate(model: TrainModel, load: TrainLoad) -> float:
    seconds = model.time(load).estimate_seconds
    assert seconds is not None
    return seconds


def test_the_bound_computes_three_forward_passes_and_half_of_attention_again() -> None:
    model = trained("llama-3.1-8b")
    compute = sum(kind.compute_seconds for kind in model.time(LOAD).by_kind) * 64 * 989.4e12
    forward = model_flops(model.graph, Work(128, 8192, phase="train"))
    attention = forward - 128 * 8192 * model_flops(model.graph, Work(1, 1)) + 128 * 8192 * 4 * 32 * 128 * 32
    assert compute == pytest.approx(3 * forward + 0.5 * attention, rel=1e-6)


@pytest.mark.parametrize("spec", ["llama-3.1-8b", "scout", "maverick"])
def test_no_estimate_beats_its_bound(spec: str) -> None:
    time = trained(spec).time(LOAD)
    assert time.estimate_seconds is not None
    assert time.estimate_seconds > time.bound_seconds


def test_recomputation_costs_at_most_a_third_more() -> None:
    model = trained()
    plain, full = estimate(model, LOAD), estimate(model, replace(LOAD, checkpointing="full"))
    assert plain < full <= plain * 4 / 3


def test_interleaving_shrinks_the_bubble_and_more_micro_batches_too() -> None:
    piped = replace(LOAD, pp=8, tp=4)
    assert replace(piped, virtual_stages=5).bubble == pytest.approx(piped.bubble / 5)
    assert replace(piped, sequences=256).bubble == pytest.approx(piped.bubble / 2)
    assert LOAD.bubble == 0
    assert estimate(trained(), piped) > estimate(trained(), replace(piped, virtual_stages=5))


def test_twice_the_devices_take_half_the_time_without_communication() -> None:
    model = trained()
    assert estimate(model, replace(LOAD, num_devices=128)) == pytest.approx(estimate(model, LOAD) / 2)


def test_fp8_is_faster_than_bf16_and_slower_than_twice() -> None:
    bf16, fp8 = estimate(trained(), LOAD), estimate(trained(scheme="fp8"), LOAD)
    assert bf16 / 2 < fp8 < bf16


def test_communication_appears_only_on_axes_that_are_cut() -> None:
    model = trained("maverick")
    assert set(communication_seconds(model.graph, model.machine, LOAD).values()) == {0.0}
    cut = communication_seconds(model.graph, model.machine, replace(LOAD, tp=2, ep=16, cp=2, ep_span=16))
    assert all(seconds > 0 for seconds in cut.values())


def test_experts_across_hosts_cost_more_than_inside_one() -> None:
    model = trained("maverick")
    inside = communication_seconds(model.graph, model.machine, replace(LOAD, ep=8, ep_span=8))["ep"]
    across = communication_seconds(model.graph, model.machine, replace(LOAD, ep=64, ep_span=64))["ep"]
    assert across > 5 * inside


@given(sequences=st.integers(1, 300), ranks=st.sampled_from([1, 2, 3, 5, 8, 16]), pp=st.sampled_from([1, 2, 4]))
def test_a_batch_that_ranks_do_not_divide_takes_as_long_as_the_next_that_they_do(
    sequences: int, ranks: int, pp: int
) -> None:
    load = replace(LOAD, sequences=sequences, num_devices=ranks * pp, pp=pp)
    full = replace(load, sequences=ranks * ceil_div(sequences, ranks))
    assert estimate(trained("llama-3.1-8b"), load) == estimate(trained("llama-3.1-8b"), full)


def blocks_and_ends(model: TrainModel, cut: TrainModel, load: TrainLoad) -> tuple[float, float, float]:
    """Seconds of one block, by the difference to the same model with fewer, of the embedding and of all after them."""
    whole, half = estimate(model, load), estimate(cut, load)
    block = (whole - half) / (model.graph.num_layers - cut.graph.num_layers)
    embedding = next(kind for kind in model.time(load).by_kind if kind.name == "embedding").estimate_seconds or 0.0
    return block, embedding, whole - model.graph.num_layers * block - embedding


@given(pp=st.integers(2, 32), micro_batches=st.sampled_from([1, 4, 64]))
def test_a_pipeline_takes_one_slowest_stage_a_micro_batch_and_the_others_once(pp: int, micro_batches: int) -> None:
    """Of llama-3.1-8b, which has 32 equal blocks, an embedding on the first stage and a head on the last."""
    model = trained("llama-3.1-8b")
    alone = replace(LOAD, num_devices=1, sequences=1)
    block, embedding, last = blocks_and_ends(
        model, trained("llama-3.1-8b", overrides=("text.layers.0.repeat=16",)), alone
    )
    stages = [len(layers) * block for layers in split_layers(32, pp)]
    stages[0] += embedding
    stages[-1] += last
    in_turn = micro_batches * max(stages) + sum(stages) - max(stages)
    load = replace(LOAD, sequences=micro_batches, num_devices=pp, pp=pp)
    assert estimate(model, load) == pytest.approx(in_turn)


def test_the_head_is_in_bf16_on_the_last_stage_so_that_fp8_pipelines_wait_for_it() -> None:
    def over_mean(scheme: str) -> float:
        piped = replace(LOAD, pp=8, sequences=1 << 16)  # the bubble is next to nothing
        return estimate(trained(scheme=scheme), piped) / estimate(
            trained(scheme=scheme), replace(LOAD, sequences=1 << 16)
        )

    assert 1.02 < over_mean("bf16") < over_mean("fp8") < 1.3


@given(tp=st.sampled_from([1, 2, 4, 8]), rows=st.integers(1, 1 << 16))
def test_traffic_of_dense_matmuls_is_that_of_their_shapes(tp: int, rows: int) -> None:
    """Of a block's gate, 4,096 x 14,336 cut by columns, and of all three matmuls of its feed-forward layer."""
    graph = trained("llama-3.1-8b").graph
    (node,) = [group.first for group in graph.groups if group.first.role == "ffn"]
    traffic = matmul_traffic(graph, node.id, tp, 1, tp)
    hidden, inner = 4096, 14336 // tp
    assert traffic.weights == 3 * hidden * inner
    assert traffic.per_token == 3 * (hidden + inner) * tp  # over all ranks
    passes = 3 * 2 * rows * traffic.per_token
    assert traffic.bytes(rows, 1) == passes + (2 + 2 + 8) * traffic.weights
    assert traffic.bytes(rows, 1, frozen=True) == passes * 2 / 3 + 4 * traffic.weights
    assert traffic.bytes(rows, 1, again=1.0) == passes * 4 / 3 + (2 + 2 + 2 + 8) * traffic.weights


def test_experts_weights_are_those_of_a_device_and_rows_those_that_are_routed() -> None:
    graph = trained("qwen3-30b-a3b").graph
    node = next(group.first for group in graph.groups if group.first.role == "ffn")
    traffic = matmul_traffic(graph, node.id, 1, 16, 1)
    expert, router = 3 * 2048 * 768, 2048 * 128
    assert traffic.weights == 128 // 16 * expert + router
    assert traffic.per_token == 8 * 3 * (2048 + 768) + 2048 + 128


def test_an_optimizer_moves_thirty_bytes_a_parameter_and_zero_shares_them() -> None:
    """Adam reads gradients, reads and writes a master copy and two moments, and writes bf16 weights: 4 + 24 + 2."""
    model = trained("llama-3.1-8b")
    (stage,) = every_stage(model.graph, model.scheme, 1, 1, 1)

    def updated(zero_stage: int, dp: int, optimizer: str = "adamw", trainer: str | None = None) -> int:
        train = TrainSetting(optimizer=optimizer, zero_stage=zero_stage, trainer=trainer)
        return updated_bytes(model.graph, train, Layout(dp=dp), stage)

    params = 8_030_261_248
    assert updated(0, 8) == updated(1, 1) == 30 * params
    assert updated(1, 8) == updated(3, 8) == 30 * params // 8
    assert updated(0, 1, "adamw-bf16") == (4 + 2 * 4 + 2 * 2) * params
    assert updated(0, 1, trainer="torchtitan") == (4 + 2 * 8 + 2 * 4) * params


def test_what_follows_the_passes_adds_to_the_step() -> None:
    model = trained()
    assert model.efficiency is not None
    more = replace(LOAD, updated_bytes=10**11, once_seconds=0.5)
    added = model.efficiency.optimizer * 1e11 / model.machine.bandwidth + model.efficiency.dp * 0.5
    assert estimate(model, more) == pytest.approx(estimate(model, LOAD) + added)


def test_torchtitan_runs_half_of_the_matmuls_again_and_hides_tensor_parallelism_only_where_it_is_asynchronous() -> None:
    titan = replace(LOAD, trainer="torchtitan", tp=8)
    model = trained()
    assert titan.passes + 0.5 == replace(titan, checkpointing="selective").passes
    assert LOAD.passes == replace(LOAD, checkpointing="selective").passes
    assert estimate(model, replace(titan, async_tp=True)) < estimate(model, titan)
    assert estimate(model, titan) < estimate(model, replace(titan, checkpointing="selective"))


@pytest.mark.parametrize(
    ("precision", "device", "row"), [("mxfp8", "GB200", "TRN-0119"), ("nvfp4", "GB200", "TRN-0121")]
)
def test_a_plan_in_a_blackwell_format_takes_as_long_as_the_replay_of_a_published_run(
    precision: str, device: str, row: str
) -> None:
    """NVIDIA's Llama-3-70B on 64 GB200 (Megatron-Bridge's performance summary)."""
    published = next(each for each in published_rows() if each.id == row)
    graph = l4spec.compile(l4spec.load("llama-3.1-70b"))
    options: dict[str, Any] = {"tp": 2, "pp": 4, "virtual_stages": 5, "zero_stage": 1, "micro_batch": 1}
    options |= {"gradient_bytes": 2, "batch": 256, "checkpointing": "none", "trainer": "megatron"}
    planned = plan(graph, gpus="64xGB200", mode="train", precision=precision, **options)
    assert planned.latency is not None
    replayed = predict_training(published)
    assert not isinstance(replayed, str)
    assert 256 * 8192 / 64 / (planned.latency.step_time_seconds or 0) == pytest.approx(replayed[0], rel=1e-9)
    assert any("not run by l4spec" in note and precision in note for note in planned.latency.notes)


def test_a_format_without_published_runs_has_a_bound_alone() -> None:
    planned = plan(l4spec.compile(l4spec.load("llama-3.1-8b")), gpus="8xH100", mode="train", precision="mxfp8")
    assert planned.latency is not None
    assert planned.latency.step_time_seconds is None
    assert planned.latency.reason == "no published training runs in mxfp8 on h100-sxm are fitted: bounds only"


def test_gradients_that_zero_sends_in_every_micro_batch_are_hidden_but_for_the_last() -> None:
    model = trained("llama-3.1-8b")
    layout, load = Layout(dp=64), replace(LOAD, micro_batch=1)
    placed = [*every_stage(model.graph, model.scheme, 1, 1, 1)]
    one, three = (with_the_rest(load, model, TrainSetting(zero_stage=stage), layout, placed) for stage in (1, 3))
    assert three.shared_seconds > one.shared_seconds == one.once_seconds == three.once_seconds > 0
