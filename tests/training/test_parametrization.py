"""Factors follow from which axes grow: those of the package mup where both define them, and CompleteP's over depth."""

import json
import re
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

import pytest
import torch

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.grow import grow
from l4spec.training.loop import LoopSettings, train_steps
from l4spec.training.parametrization import RunGrowth, TensorFactors, tensor_factors
from l4spec.training.recipe.phases import prepare
from l4spec.training.recipe.worker import RecipeRun
from l4spec.training.transfer import TransferPoint, best_rates, features, final_loss
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
    assert {(f.deviation, f.rate, f.decay) for f in (grown[key] for key in vectors)} == {(1, 1, 1)}


def test_decay_and_rate_of_a_matrix_keep_their_product() -> None:
    for factors in tensor_factors(graph(4, 2), graph(), "completedp").values():
        assert factors.rate * factors.decay == pytest.approx(1)


def test_depth_scales_what_enters_the_stream_and_nothing_else() -> None:
    base, deep = tensor_factors(graph(), graph(), "completedp"), tensor_factors(graph(1, 4), graph(), "completedp")
    scaled = {name.split(".", 3)[-1] for name, factors in deep.items() if factors.rate != 1}
    assert scaled == {"attention.o_proj.weight", "ffn.experts.down_proj"}
    assert {deep[name].deviation for name in deep if name.endswith("down_proj")} == {0.25}
    assert set(base.values()) == {TensorFactors()}


def test_biases_that_are_added_to_the_stream_are_scaled_as_the_matrices_beside_them() -> None:
    """The branch is scaled as a whole (arXiv:2505.01618, eq. 1): a bias at the full rate would add up over depth."""
    names = ["text.parts.attention.output_bias=true", "text.parts.moe.expert_bias=true"]
    base = l4spec.load("tiny/router-softmax", names)
    deep = tensor_factors(l4spec.compile(grow(base, depth=4)), l4spec.compile(base), "completedp")
    for bias, weight in (("attention.o_proj.bias", "attention.o_proj.weight"), ("experts.down_bias", "down_proj")):
        (by_bias,) = {deep[name] for name in deep if name.endswith(bias)}
        (by_weight,) = {deep[name] for name in deep if name.endswith(weight)}
        assert (by_bias.deviation, by_bias.rate) == (by_weight.deviation, by_weight.rate) == (0.25, 0.25)
    assert {deep[name].rate for name in deep if name.endswith("gate_bias")} == {1.0}


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_epsilon_follows_the_size_of_gradients(axis: Literal["width", "depth"]) -> None:
    """Adam's step is the gradient over its size plus epsilon: the sizes of first gradients are measured.

    A fourfold growth scales a tensor's by 1 or by 1/4; 1/2 (a router's) is that of vectors that are still random to
    each other. Within 2.5 a ratio is that of its factor and of no other.
    """
    before, _ = _first_gradients(axis, 1)
    after, eps = _first_gradients(axis, 4)
    for name, size in before.items():
        assert 1 / 2.5 < after[name] / size / eps[name] < 2.5, name


def _first_gradients(axis: Literal["width", "depth"], times: int) -> tuple[dict[str, float], dict[str, float]]:
    """Root mean square of first gradients over layers and two seeds, and factors on epsilon, by place in a block."""
    sizes: dict[str, list[float]] = {}
    eps = {}
    for seed in (0, 1):
        job = TransferJob("recipes/transfer", Layout(), axis=axis, times=times, seed=seed, threads=1)
        run, (phase,) = RecipeRun(job, lambda line: None), job.phases
        prepared = prepare(run.context(phase))
        optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
        next(train_steps(run.model, optimizer, prepared.batch_of, LoopSettings(1), objective=prepared.objective))
        for name, parameter in run.model.named_parameters():
            assert parameter.grad is not None
            place = re.sub(r"layers\.\d+\.", "", name)
            sizes.setdefault(place, []).append(float(parameter.grad.square().mean().sqrt()))
            eps[place] = run.factors[name].eps
    return {place: geometric_mean(each) for place, each in sizes.items()}, eps


def test_a_sweep_trains_what_the_phase_trains_in_its_precision() -> None:
    """Frozen tensors keep their values, and matmuls in fp8 give other losses."""
    few = "phases[0].tokens=1024"
    losses = {
        final_loss(TransferJob("recipes/transfer", Layout(), (few, *sets), threads=1))
        for sets in (
            (),
            ("phases[0].trainable=[text.head]",),
            ("phases[0].precision={kind: fp8, scaling: tensorwise}",),
        )
    }
    assert len(losses) == 3


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
