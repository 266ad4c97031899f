"""Factors follow from which axes grow: those of the package mup where both define them, and CompleteP's over depth."""

import json
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.grow import grow
from l4spec.training.parametrization import RunGrowth, TensorFactors, tensor_factors
from l4spec.training.transfer import TransferPoint, best_rates, features
from l4spec.training.transfer_job import TransferJob

MUP: dict[str, Any] = json.loads(Path(__file__).with_name("mup_factors.json").read_text(encoding="utf-8"))
PLACES = {
    "embedding.weight": "text.embedding.weight",
    "norm.weight": "text.layers.0.ffn_norm.weight",
    "q_proj.weight": "text.layers.0.attention.q_proj.weight",
    "up_proj.weight": "text.layers.0.ffn.experts.up_proj",
    "down_proj.weight": "text.layers.0.ffn.experts.down_proj",
    "router.weight": "text.layers.0.ffn.router.weight",
    "head.weight": "text.head.weight",
}


def graph(width: int = 1, depth: int = 1, name: str = "tiny/router-softmax") -> LayerGraph:
    return l4spec.compile(grow(l4spec.load(name), width=width, depth=depth))


@pytest.mark.parametrize("times", MUP["factors"])
def test_factors_over_width_equal_those_of_mup(times: str) -> None:
    ours = tensor_factors(graph(int(times)), graph(), "mup")
    for theirs, name in PLACES.items():
        deviation, rate, _ = MUP["factors"][times][theirs]
        factors = ours[name]
        assert (factors.deviation, factors.rate) == pytest.approx((deviation, rate), rel=1e-6), name


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick", "tiny/deepseek"])
def test_every_tensor_of_every_kind_has_factors_and_at_the_base_they_are_one(name: str) -> None:
    base = graph(name=name)
    for rule in ("standard", "mup", "completedp"):
        assert set(tensor_factors(base, base, rule).values()) == {TensorFactors()}
    grown = tensor_factors(graph(4, name=name), base, "mup")
    assert {f.rate for f in grown.values()} == {1.0, 0.25}
    vectors = [key for key in grown if "norm" in key]
    assert {grown[key] for key in vectors} == {TensorFactors()}


def test_decay_and_rate_of_a_matrix_keep_their_product() -> None:
    for factors in tensor_factors(graph(4, 2), graph(), "completedp").values():
        assert factors.rate * factors.decay == pytest.approx(1)


def test_depth_scales_what_enters_the_stream_and_nothing_else() -> None:
    base, deep = tensor_factors(graph(), graph(), "completedp"), tensor_factors(graph(1, 4), graph(), "completedp")
    scaled = {name.split(".", 3)[-1] for name, factors in deep.items() if factors != TensorFactors()}
    assert scaled == {"attention.o_proj.weight", "ffn.experts.down_proj"}
    assert {deep[name].deviation for name in deep if name.endswith("down_proj")} == {0.25}
    assert set(base.values()) == {TensorFactors()}


def test_a_larger_batch_and_fewer_tokens_take_larger_steps() -> None:
    assert RunGrowth(4, 1).rate == 2
    assert RunGrowth(1, 4).rate == 0.5
    assert RunGrowth(4, 4).rate == 1


def test_what_a_rule_cannot_scale_is_refused() -> None:
    tied = l4spec.compile(l4spec.load("tiny/router-softmax", ["text.tie_embeddings=true"]))
    with pytest.raises(UserError, match="a head of its own"):
        tensor_factors(tied, tied, "mup")
    with pytest.raises(UserError, match="no tensor like"):
        tensor_factors(graph(), graph(name="tiny/deepseek"), "mup")


def test_features_stay_flat_as_the_width_grows_where_the_standard_s_explode() -> None:
    def growths(kind: str) -> list[float]:
        sizes = [
            features(TransferJob("recipes/transfer", Layout(), (f"parametrization.kind={kind}",), times=times), 4)
            for times in (1, 4)
        ]
        return [after / before for before, after in zip(*(one.values() for one in sizes), strict=True)]

    assert 2 * max(growths("completedp")) < max(growths("standard"))


def test_the_best_rate_of_each_size_is_that_of_the_least_mean_loss() -> None:
    losses = {(1, 1.0): (2.0, 2.2), (1, 2.0): (1.9, 2.4), (4, 1.0): (1.5, 1.5), (4, 2.0): (1.4, 1.4)}
    points = [
        TransferPoint("width", times, rate, seed, loss)
        for (times, rate), pair in losses.items()
        for seed, loss in enumerate(pair)
    ]
    assert best_rates(points) == {1: 1.0, 4: 2.0}
