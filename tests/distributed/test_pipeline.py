"""Pipeline stages: logits, tokens, loss and gradients are those of one process, bytes held and sent are the plan's.

A pipeline alone computes what one process computes, in the same order, so its logits are equal to the last bit.
"""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout, MeshCoordinate
from l4spec.spec.model import ModelSpec
from planners.catalog import engine, quantization
from planners.collectives.communication import communication
from planners.counts.kv_cache import cache_bytes
from planners.counts.weights import scheme_of
from planners.device.memory import cache_rows
from planners.device.stages import every_stage
from tests.distributed.staged import IDS, MAX_LEN, Results, drawn, infer, train, whole_model
from tests.distributed.whole import bound_of
from tests.distributed.world import run_world
from tests.runtime.tiny import Json
from tests.strategies import models

QUICK = (
    (Layout(pp=2), {"tied": True, "images": True}),
    (Layout(pp=3, tp=2), {"tied": True}),
    (Layout(pp=2, dp=2, ep=2), {"images": True}),
    (Layout(pp=2, tp=4), {"images": True}),  # only the first stage has a tower, cut into fewer shards than the text
)
MORE = tuple(
    (Layout(pp=pp, tp=tp, ep=ep, dp=dp), {"tied": tied, "images": True})
    for tied in (False, True)
    for pp, tp, ep, dp in (
        *((2, 2, 2, 1), (2, 2, 1, 2), (2, 1, 1, 4), (2, 1, 2, 1)),
        *((3, 1, 1, 1), (3, 1, 2, 1), (4, 1, 1, 1), (4, 2, 1, 1), (4, 1, 1, 2), (5, 1, 1, 1)),
    )
)


def named(value: object) -> str:
    return "-".join(value) if isinstance(value, dict) else str(value).replace(" ", "-")


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize(("layout", "options"), [*QUICK, *SLOW], ids=named)
def test_stages_give_the_logits_and_tokens_of_one_process_and_hold_and_send_what_is_planned(
    layout: Layout, options: dict[str, bool]
) -> None:
    graph = whole_model(**options).graph
    most = 0.0 if layout.num_devices == layout.pp else bound_of(graph, "fp32")
    for result in run_world(layout.num_devices, infer, layout, options):
        place: MeshCoordinate = result["place"]
        if place.pp < layout.pp - 1:
            assert all(shape[1:] == (0, 97) for shape in result["shapes"].values()), "only the last stage has logits"
        for name, difference in result["differences"].items():
            assert difference <= most, f"{name} at {place}"
        assert result["tokens"], f"generation at {place}"
        assert result["made_alike"], f"weights at {place}"
        assert_sent_as_planned(graph, layout, result)
        assert_held_as_planned(graph, layout, result)


def sequences(layout: Layout) -> int:
    """How many of the sequences one rank runs."""
    return len(IDS) // (layout.dp * layout.ep)


def assert_sent_as_planned(graph: LayerGraph, layout: Layout, result: Results) -> None:
    """Hidden states in fp32, twice the plan's bytes; in generation then ids of 8 bytes to all stages; nothing else."""
    (row,) = [row for row in communication(graph, layout) if row.axis == "pp"]
    per_token = 2 * row.bytes_per_token * sequences(layout) * (result["place"].pp < layout.pp - 1)
    num_tokens = IDS.shape[1]
    assert result["prefill"] == ({"send": per_token * num_tokens} if per_token else {})
    ids = {"broadcast": 4 * 8 * len(IDS)}
    assert result["decode"] == ({"send": per_token * (num_tokens + 3)} if per_token else {}) | ids


def assert_held_as_planned(graph: LayerGraph, layout: Layout, result: Results) -> None:
    """The plan counts the largest shard: where tp divides 97 rows of vocabulary unevenly, that of its first rank."""
    place: MeshCoordinate = result["place"]
    stage = every_stage(graph, scheme_of(quantization("fp32")), layout.tp, layout.ep, layout.pp)[place.pp]
    rows = cache_rows(graph, stage, layout.tp, 4)
    assert result["cache_bytes"] == cache_bytes(rows, engine("ideal"), MAX_LEN, sequences(layout))
    assert result["param_bytes"] <= stage.weights.total_bytes
    assert place.tp > 0 or result["param_bytes"] == stage.weights.total_bytes


@pytest.mark.parametrize(("layout", "options"), [*QUICK, (Layout(dp=2), {"images": True}), *SLOW], ids=named)
def test_steps_give_the_loss_and_gradients_of_one_process_and_send_what_is_planned(
    layout: Layout, options: dict[str, bool]
) -> None:
    """A gradient passes through the contractions of two passes, whose errors add up as a random walk."""
    graph = whole_model(**options).graph
    bound = bound_of(graph, "fp32")
    tables: dict[tuple[int, ...], torch.Tensor] = {}
    for result in run_world(layout.num_devices, train, layout, options):
        place: MeshCoordinate = result["place"]
        for number, step in enumerate(result["steps"]):
            assert abs(step["loss"]) < bound, f"step {number} at {place}"
            assert step["gradients"][0] < math.sqrt(2) * bound, f"step {number} at {place}: {step['gradients'][1]}"
        assert abs(result["evaluated"]) < bound, f"evaluation at {place}"
        if result["table"] is not None:
            table = tables.setdefault(place[1:], result["table"])
            assert torch.equal(table, result["table"]), f"the copies of a tied table must not drift apart, at {place}"
        if layout.pp > 1:
            assert_microbatches_as_planned(graph, layout, result)


def assert_microbatches_as_planned(graph: LayerGraph, layout: Layout, result: Results) -> None:
    """In the second step, since in the first torch's stages tell each other what they know, in a few bytes."""
    (row,) = [row for row in communication(graph, layout) if row.axis == "pp"]
    stage, count, step = result["place"].pp, result["num_microbatches"], result["steps"][1]
    neighbours = (stage < layout.pp - 1) + (stage > 0)  # hidden states go on and their gradients back, in fp32
    table = 0 if result["table"] is None else result["table"].nbytes
    assert step["sent"] == neighbours * 2 * row.bytes_per_token * count * IDS.shape[1] + table
    assert count < layout.pp or step["in_flight"] == min(layout.pp - stage, count)


@settings(max_examples=10, deadline=None)
@given(models(vision=False), st.integers(2, 4))
def test_any_model_in_stages_gives_the_logits_of_one_process_and_holds_what_is_planned(data: Json, pp: int) -> None:
    graph = l4spec.compile(ModelSpec.model_validate(data))
    assume(graph.num_layers > 1)
    layout = Layout(pp=min(pp, graph.num_layers))
    planned = every_stage(graph, scheme_of(quantization("fp32")), 1, 1, layout.pp)
    for result in run_world(layout.num_devices, drawn, data, layout):
        assert result["equal"]
        assert result["param_bytes"] == planned[result["place"].pp].weights.total_bytes


def test_more_stages_than_layers_are_refused_before_anybody_waits() -> None:
    model = build(whole_model().graph, "meta")
    with pytest.raises(UserError, match="pp=6 exceeds the 5 layers"):
        distribute(model, Layout(pp=6))
