"""Bytes sent per token and axis, by the volume of ring collectives."""

import pytest

from l4spec.sharding.layout import Layout
from planners.communication import communication
from tests.planners.models import graph

WIDTH = 5120 * 2  # bytes of one token's bf16 activations


def sent(name: str, layout: Layout) -> dict[str, int]:
    return {row.axis: row.bytes_per_token for row in communication(graph(name), layout)}


def test_one_device_sends_nothing() -> None:
    assert sent("scout", Layout()) == sent("scout", Layout(dp=8)) == {}


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_reduces_twice_a_layer_and_behind_the_embedding(tp: int) -> None:
    """A ring all-reduce of n bytes over p ranks sends 2 n (p - 1) / p."""
    assert sent("scout", Layout(tp=tp)) == {"tp": 97 * 2 * WIDTH * (tp - 1) // tp}


@pytest.mark.parametrize(("name", "routed_layers"), [("scout", 48), ("maverick", 24)])
def test_expert_parallelism_sends_each_routed_copy_there_and_back(name: str, routed_layers: int) -> None:
    assert sent(name, Layout(ep=4)) == {"ep": routed_layers * 2 * WIDTH * 3 // 4}


def test_a_pipeline_sends_one_vector_and_all_axes_add_up() -> None:
    assert sent("scout", Layout(pp=4)) == {"pp": WIDTH}
    assert sent("scout", Layout(tp=2, ep=2, pp=2)) == {
        axis: size
        for layout in (Layout(tp=2), Layout(ep=2), Layout(pp=2))
        for axis, size in sent("scout", layout).items()
    }
