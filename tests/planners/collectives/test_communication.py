"""Bytes sent per token and axis, by the volume of ring collectives."""

import pytest

from l4spec.sharding.layout import Layout
from planners.collectives.communication import communication
from tests.planners.models import graph

WIDTH = 5120 * 2  # bytes of one token's bf16 activations


LOGITS = 202_048 * 2


def sent(name: str, layout: Layout) -> dict[str, int]:
    """By axis; the logits that are joined stand under their own name."""
    rows = communication(graph(name), layout)
    return {"logits" if row.collective == "all-gather" else row.axis: row.bytes_per_token for row in rows}


def test_one_device_sends_nothing() -> None:
    assert sent("scout", Layout()) == sent("scout", Layout(dp=8)) == {}


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_reduces_twice_a_layer_and_behind_the_embedding(tp: int) -> None:
    """A ring all-reduce of n bytes over p ranks sends 2 n (p - 1) / p."""
    assert sent("scout", Layout(tp=tp))["tp"] == 97 * 2 * WIDTH * (tp - 1) // tp


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_ranks_join_their_logits(tp: int) -> None:
    assert sent("scout", Layout(tp=tp))["logits"] == LOGITS * (tp - 1) // tp


@pytest.mark.parametrize(("name", "routed_layers"), [("scout", 48), ("maverick", 24)])
def test_expert_parallelism_sends_each_routed_copy_there_and_back(name: str, routed_layers: int) -> None:
    assert sent(name, Layout(ep=4)) == {"ep": routed_layers * 2 * WIDTH * 3 // 4}


def test_a_pipeline_sends_one_vector() -> None:
    assert sent("scout", Layout(pp=4)) == {"pp": WIDTH}


def test_a_device_of_a_pipeline_sends_what_its_stage_does() -> None:
    """24 of 48 layers and the embedding; of five stages those in the middle have ten layers, the first one nine."""
    expected = {"tp": 49 * WIDTH, "logits": LOGITS // 2, "ep": 24 * WIDTH, "pp": WIDTH}
    assert sent("scout", Layout(tp=2, ep=2, pp=2)) == expected
    assert sent("scout", Layout(tp=2, pp=5))["tp"] == 20 * WIDTH
