"""Sequence parallelism: losses and gradients of one process, and what ranks keep and send is planned, to the byte."""

from typing import Any

import pytest
import torch
from torch import Tensor

from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.step import train_step
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from tests.distributed.world import run_world
from tests.runtime.hybrid_families import KDA
from tests.runtime.tiny import (
    MLA,
    ROPE,
    SWIGLU,
    Json,
    gqa,
    graph_of,
    llama4_text,
    moe,
    randomised,
    text_of,
    token_ids,
    vision,
)

SEQUENCES, TOKENS = 4, 12
PLACE = 5
"""The token whose places images take: four of a tile."""
MODELS: dict[str, tuple[Json, Json]] = {
    "routed": (
        {"a": gqa(num_heads=4, num_kv_heads=2, position=ROPE), "f": moe(num_experts=4, num_shared_experts=1)},
        {"attention": "a", "ffn": "f", "repeat": 2},
    ),
    "sandwich": (
        {"a": gqa(num_heads=4, num_kv_heads=1, mask={"kind": "causal"}), "f": SWIGLU},
        {"attention": "a", "ffn": "f", "form": "sandwich", "repeat": 2},
    ),
    "recurrent": ({"a": KDA | {"num_heads": 2}, "f": SWIGLU}, {"attention": "a", "ffn": "f", "repeat": 2}),
    "latent": ({"a": MLA, "f": SWIGLU}, {"attention": "a", "ffn": "f", "form": "parallel", "repeat": 2}),
}


def whole_model(name: str) -> Model:
    if name == "images":
        model = randomised(graph_of(llama4_text(), vision()), dtype="fp64").train()
        model.image_token_id = PLACE
        return model
    parts, layers = MODELS[name]
    others = {"tie_embeddings": True, "learned_positions": True} if name == "sandwich" else {}
    return randomised(graph_of(text_of(parts, [layers], **others)), dtype="fp64").train()


def trained(_: int, name: str, layout: Layout, checkpointing: Checkpointing) -> dict[str, Any]:
    """Loss and gradients of a step with sequence parallelism; with one process without."""
    model = distribute(whole_model(name), layout, train=True, sequence_parallel=True)
    model.checkpointing = checkpointing
    ids, inputs = token_ids(SEQUENCES, TOKENS + 1), dict[str, Any]()
    if name == "images":
        ids[ids == PLACE] = PLACE + 1
        ids[:, 2:6] = PLACE
        pixels = torch.randn(SEQUENCES, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inputs["pixel_values"] = model.own_rows(pixels)
    own = model.own_rows(ids)
    loss = train_step(model, own[:, :-1], own[:, 1:], **inputs)
    return {
        "loss": float(loss),
        "gradients": {
            name: (model.local_region(name), local_of(p.grad).clone())
            for name, p in model.named_parameters()
            if p.grad is not None
        },
    }


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("routed", Layout(tp=2)),
        ("routed", Layout(tp=2, ep=2)),
        ("sandwich", Layout(tp=4)),
        ("sandwich", Layout(tp=2, dp=2)),
        ("latent", Layout(tp=2, pp=2)),
        ("recurrent", Layout(tp=2)),
        ("images", Layout(tp=2)),
    ],
)
def test_a_step_is_that_of_one_process(name: str, layout: Layout, checkpointing: Checkpointing) -> None:
    (one,) = run_world(1, trained, name, Layout(), "none")
    for result in run_world(layout.num_devices, trained, name, layout, checkpointing):
        assert result["loss"] == pytest.approx(one["loss"], rel=1e-9)
        assert result["gradients"].keys() <= one["gradients"].keys()
        for tensor, (region, grad) in result["gradients"].items():
            part = one["gradients"][tensor][1][tuple(slice(run.start, run.stop) for run in region)]
            assert torch.allclose(grad, part, rtol=1e-8, atol=1e-10), tensor  # fp64, some hundred additions


def refused(_: int) -> str:
    model = distribute(whole_model("latent"), Layout(tp=2), train=True, sequence_parallel=True)
    ids = token_ids(1, 8)
    with torch.no_grad():
        model.loss(ids[:, :-1], ids[:, 1:])  # whole on every rank
    with pytest.raises(ValueError, match="sequence parallelism") as caught:
        train_step(model, ids[:, :-1], ids[:, 1:])
    return str(caught.value)


def test_tokens_that_ranks_cannot_share_are_refused() -> None:
    for message in run_world(2, refused):
        assert message == "7 tokens cannot be divided among 2 ranks (sequence parallelism)"


def last_logits(_: int, layout: Layout) -> Tensor:
    """Logits of each last token, with gradients."""
    model = distribute(whole_model("routed"), layout, sequence_parallel=True).train()
    logits: Tensor = model(token_ids(2, 8), logits="last")
    return logits.detach()


def test_logits_of_last_tokens_are_those_of_one_process() -> None:
    (one,) = run_world(1, last_logits, Layout())
    for logits in run_world(2, last_logits, Layout(tp=2)):
        assert torch.allclose(logits, one, rtol=1e-9)
