"""Weights in host memory: nothing is lost between device and host, as little as possible moves, bounds are bounds."""

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from planners import plan
from planners.deployment import Deployment
from planners.device.memory import place
from planners.plan_types import HostMemoryUse, Plan
from planners.request import PlanRequest
from tests.planners.models import graph

CARD = {"gpus": "1xRTX4090", "quantization": "q4_k_m"}
SHARED = {**CARD, "host_memory": "128GB"}


def used(made: Plan) -> HostMemoryUse:
    assert made.host_memory is not None
    return made.host_memory


def bounds(made: Plan) -> tuple[float, float]:
    assert made.latency is not None
    first, following = made.latency.ttft_bound_seconds, made.latency.time_per_output_token_bound_seconds
    assert first is not None
    assert following is not None
    return first, following


def expert_bytes(model: LayerGraph, layers: int) -> int:
    """Bytes of the routed experts of the first layers in bf16, counted tensor by tensor."""
    return sum(
        2 * prod(parameter.shape)
        for node in model.nodes
        if node.scope == "text" and node.layer is not None and node.layer < layers
        for parameter in node.declaration.parameters
        if parameter.is_per_expert
    )


@pytest.mark.parametrize("part", ["experts", "layers"])
@given(context=st.integers(1, 200_000), batch=st.integers(1, 4))
def test_device_and_host_hold_the_whole_model_and_no_more_moves_than_must(part: str, context: int, batch: int) -> None:
    asked = PlanRequest(gpus="1xRTX4090", quantization="q4_k_m", context=context, batch=batch)
    shared = Deployment.resolve(graph("scout"), asked.changed(host_memory="2TB", on_host=part))
    [whole] = place(Deployment.resolve(graph("scout"), asked).setting, Layout()).uses(context, batch)
    placement = place(shared.setting, Layout())
    layers, [here], spill = placement.layers_on_host(context, batch), placement.uses(context, batch), placement.spill
    assert spill is not None
    assert here.weights + here.cache + spill.host_bytes(layers, context, batch) == whole.weights + whole.cache
    assert (here.activations, here.reserved) == (whole.activations, whole.reserved)
    if not placement.fits(context, batch):
        assert layers == 48
    elif layers:
        last = spill.host_bytes(layers, context, batch) - spill.host_bytes(layers - 1, context, batch)
        assert placement.room(context, batch) < last


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_experts_in_host_memory_are_counted_tensor_by_tensor(name: str) -> None:
    there = used(plan(graph(name), gpus="1xH100", quantization="bf16", host_memory="2TB"))
    assert there.weights_bytes == expert_bytes(graph(name), there.num_layers)


def test_a_model_without_experts_moves_whole_layers_with_their_caches() -> None:
    there = used(plan(graph("llama-3.1-70b"), **SHARED))
    assert there.part == "layers"
    assert there.kv_cache_bytes == there.num_layers * 2 * 8 * 128 * 2 * 8192


def test_a_model_that_fits_leaves_the_host_alone_and_is_bounded_as_without() -> None:
    alone, made = (plan(graph("llama-3.1-8b"), **options) for options in (CARD, SHARED))
    assert used(made).num_layers == used(made).weights_bytes == 0
    assert bounds(made) == bounds(alone)
    assert (made.max_batch or 0) > (alone.max_batch or 0)
    assert "nothing of 119.21 GiB: the GPU has room for the whole model" in made.report()


def test_the_host_holds_no_more_than_it_has() -> None:
    made = plan(graph("scout"), **CARD, host_memory="16GB")
    assert not made.fits
    assert used(made).weights_bytes <= 16 * 10**9 < used(made).weights_bytes * (1 + 1 / used(made).num_layers) * 1.2


def test_faster_memory_and_links_never_slow_a_bound() -> None:
    rates = ("20GB/s", "89.6GB/s", "460GB/s")
    tpot = [bounds(plan(graph("scout"), **SHARED, host_bandwidth=rate))[1] for rate in rates]
    assert all(slower > faster for slower, faster in pairwise(tpot))
    assert bounds(plan(graph("scout"), **SHARED | {"gpus": "1xRTX5090"}))[0] < bounds(plan(graph("scout"), **SHARED))[0]


def test_a_decode_step_takes_the_chosen_experts_at_the_hosts_rate() -> None:
    """Scout chooses 1 of 16 experts in each of its layers; nothing else lies in the host's memory."""
    made = plan(graph("scout"), **SHARED)
    assert made.latency is not None
    assert made.latency.decode is not None
    away = next(kind for kind in made.latency.decode.by_kind if "host memory" in kind.name)
    assert away.memory_seconds == pytest.approx(used(made).weights_bytes / 16 / 89.6e9, rel=1e-6)
    vectors = 2 * used(made).num_layers * 5120 * 2  # there and back
    assert away.links_seconds == pytest.approx(vectors / 32e9)
    assert away.compute_seconds == 0


def test_a_prompt_copies_what_lies_there_over_the_link() -> None:
    made = plan(graph("scout"), **SHARED)
    assert made.latency is not None
    assert made.latency.prefill is not None
    away = next(kind for kind in made.latency.prefill.by_kind if "host memory" in kind.name)
    assert away.links_seconds == pytest.approx(
        used(made).weights_bytes / 32e9, rel=0.02
    )  # 8,192 tokens reach nearly all


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "2xRTX4090", "host_memory": "128GB"}, "one GPU"),
        ({"gpus": "1xM3-Ultra", "host_memory": "128GB"}, "no bandwidth to the host's memory"),
        ({"host_memory": "128GB"}, "needs --gpus"),
        ({"gpus": "1xRTX4090", "host_memory": "128"}, "with its unit"),
        ({"gpus": "1xRTX4090", "host_memory": "0 GB"}, "above 0"),
        ({"gpus": "1xRTX4090", "host_memory": "64GB", "host_bandwidth": "0GB/s"}, "above 0"),
        ({"gpus": "1xRTX4090", "host_bandwidth": "90GB/s"}, "needs --host-memory"),
        ({"gpus": "1xRTX4090", "on_host": "layers"}, "needs --host-memory"),
        ({"gpus": "1xRTX4090", "host_memory": "64GB", "on_host": "all"}, "unknown on_host"),
        ({"gpus": "1xRTX4090", "host_memory": "64GB", "mode": "train"}, "no part in training"),
    ],
)
def test_what_cannot_be_planned_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(graph("scout"), **options)


def test_experts_are_asked_of_models_that_have_some() -> None:
    with pytest.raises(UserError, match="no routed experts"):
        plan(graph("llama-3.1-8b"), **SHARED, on_host="experts")


def test_one_card_that_is_too_small_gets_the_least_usual_host_memory_that_is_enough() -> None:
    made = plan(graph("scout"), **CARD)
    command = next(suggestion.command for suggestion in made.suggestions if "host memory" in suggestion.change)
    assert "--host-memory 64GB" in command
    assert plan(graph("scout"), **CARD, host_memory="64GB").fits
    assert not plan(graph("scout"), **CARD, host_memory="32GB").fits
