"""Training steps: laws over layouts, recomputation and pipelines."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import l4spec
from l4spec.layers.declaration import Work
from l4spec.sharding.rules import split_layers
from l4spec.units import ceil_div
from planners.catalog import hardware, quantization
from planners.counts.flops import model_flops
from planners.counts.weights import scheme_of
from planners.timing.efficiency import training_efficiency
from planners.timing.machine import Machine
from planners.timing.training_step import TrainLoad, TrainModel, communication_seconds

LOAD = TrainLoad(sequences=128, length=8192, num_devices=64)


def trained(spec: str = "llama-3.1-70b", device: str = "h100-sxm", scheme: str = "bf16") -> TrainModel:
    graph = l4spec.compile(l4spec.load(spec))
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
    plain, full = estimate(model, LOAD), estimate(model, replace(LOAD, recompute=1.0))
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


@given(pp=st.integers(2, 32), micro_batches=st.sampled_from([1, 4, 64]))
def test_a_pipeline_takes_one_slowest_stage_a_micro_batch_and_the_others_once(pp: int, micro_batches: int) -> None:
    """Of equal blocks (llama-3.1-8b has 32), whose time is that of one stage's pass without head and embedding."""
    model, blocks = trained("llama-3.1-8b"), split_layers(32, pp)
    load = replace(LOAD, sequences=micro_batches, num_devices=pp, pp=pp, stages=blocks)
    alone = estimate(model, replace(load, num_devices=1, pp=1, sequences=1, stages=()))
    most = max(map(len, blocks))
    in_turn = micro_batches * most + 32 - most  # blocks that a step waits for, one after the other
    assert estimate(model, load) == pytest.approx(alone * in_turn / 32)


def test_stages_that_need_as_long_as_the_slowest_of_fewer_gain_nothing() -> None:
    model = trained()  # 80 blocks: 40 stages have two each, and of 64 the slowest two
    forty = replace(LOAD, num_devices=40, pp=40, stages=split_layers(80, 40))
    assert estimate(model, replace(forty, num_devices=64, pp=64, stages=split_layers(80, 64))) == pytest.approx(
        estimate(model, forty)
    )
