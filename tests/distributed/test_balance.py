"""Balancing by layouts: gradients, loads and biases are those of one process, whatever ranks share the batch."""

from typing import Any

import pytest
import torch

from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.step import train_step
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from l4spec.training.routing import RoutingLog, move_biases
from tests.distributed.whole import relative
from tests.distributed.world import run_world
from tests.runtime.tiny import SWIGLU, Json, gqa, graph_of, moe, randomised, text_of, token_ids

IDS = token_ids(4, 13, 97)
AUXILIARY: Json = {"balance": {"auxiliary_loss": 0.5, "z_loss": 0.1}}
OPTIONS: dict[str, Json] = {
    "auxiliary": AUXILIARY,
    "sequence": {"balance": {"auxiliary_loss": 0.5, "counted_over": "sequence"}},
    "bias": {"balance": {"bias_update": 0.05}, "router": {"score": "sigmoid", "correction_bias": True}},
    "expert choice": {"balance": {"expert_choice": 1.0, "z_loss": 0.1}},
}
LAYOUTS = (Layout(dp=2), Layout(ep=2), Layout(tp=2), Layout(pp=2))


def whole_model(options: Json) -> Model:
    """Two layers, of which both have a mixture, in fp64."""
    parts = {"attention": gqa(), "dense": SWIGLU, "moe": moe(num_shared_experts=1, **options)}
    graph = graph_of(text_of(parts, [{"attention": "attention", "ffn": "moe", "repeat": 2}]))
    return randomised(graph, dtype="fp64").train()


def trained(rank: int, options: Json, layout: Layout) -> dict[str, Any]:
    """Gradients, loads and biases after one step of one microbatch, with activations computed again."""
    model = distribute(whole_model(options), layout, train=True)
    model.checkpointing = "full"
    log = RoutingLog(model)
    own = model.own_rows(IDS)
    loss = train_step(model, own[:, :-1], own[:, 1:], num_microbatches=1)
    loads = log.finish()
    move_biases(model, loads)
    return {
        "loss": float(loss),
        "loads": {node: load.counts for node, load in loads.items()},
        "gradients": {
            name: (model.local_region(name), local_of(p.grad))
            for name, p in model.named_parameters()
            if p.grad is not None
        },
        "biases": {name: b.clone() for name, b in model.named_buffers() if name.endswith("correction_bias")},
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_balanced_step_is_the_same_on_every_layout(name: str, layout: Layout) -> None:
    (one,) = run_world(1, trained, OPTIONS[name], Layout())
    for result in run_world(2, trained, OPTIONS[name], layout):
        assert result["loads"] == one["loads"]
        assert result["loss"] == pytest.approx(one["loss"], rel=1e-9)
        assert all(torch.allclose(bias, one["biases"][name]) for name, bias in result["biases"].items())
        for tensor, (region, grad) in result["gradients"].items():
            part = one["gradients"][tensor][1][tuple(slice(run.start, run.stop) for run in region)]
            assert relative(grad, part) < 1e-9, tensor  # fp64, some 100 additions


def test_an_ep_group_balances_its_own_tokens() -> None:
    grouped = {"balance": {"auxiliary_loss": 0.5, "counted_over": "ep_group"}}
    alone, together = ({**grouped}, {"balance": {"auxiliary_loss": 0.5}})
    (first, _) = run_world(2, trained, alone, Layout(ep=2))
    (whole,) = run_world(1, trained, together, Layout())
    router = next(tensor for tensor in first["gradients"] if tensor.endswith("router.weight"))
    region, grad = first["gradients"][router]
    part = whole["gradients"][router][1][tuple(slice(run.start, run.stop) for run in region)]
    assert relative(grad, part) < 1e-9
    (split, _) = run_world(2, trained, alone, Layout(dp=2))
    region, grad = split["gradients"][router]
    part = whole["gradients"][router][1][tuple(slice(run.start, run.stop) for run in region)]
    assert relative(grad, part) > 1e-6
