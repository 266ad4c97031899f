"""A mixture made from a dense checkpoint gives its logits, and learns to differ."""

from pathlib import Path
from typing import Any

import pytest
import torch

from l4spec.errors import UserError
from l4spec.runtime.checkpoints import save_checkpoint
from l4spec.runtime.upcycle import upcycle
from tests.runtime.tiny import ROPE, SWIGLU, Json, gqa, graph_of, moe, randomised, text_of, token_ids

ROUTER: Json = {"score": "softmax", "renormalize": True, "scales": "output"}


def model(ffn: Json) -> Any:
    parts = {"attention": gqa(position=ROPE), "ffn": ffn}
    return graph_of(text_of(parts, [{"attention": "attention", "ffn": "ffn", "repeat": 2}]))


def mixture(**others: Any) -> Json:
    return moe(intermediate_size=64, **({"router": ROUTER} | others))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "parent"
    save_checkpoint(randomised(model(SWIGLU), dtype="fp32"), folder)
    return folder


@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_an_upcycled_mixture_gives_its_parents_logits(parent: Path, top_k: int, score: str) -> None:
    """Scores of several equal experts are rounded before they add up to 1: 1e-6 is 8 units of rounding of fp32."""
    dense = randomised(model(SWIGLU), dtype="fp32")
    child = upcycle(model(mixture(num_experts_per_token=top_k, router=ROUTER | {"score": score})), parent)
    ids = token_ids(2, 20)
    with torch.no_grad():
        expected = dense(ids)
        assert float((child(ids) - expected).abs().max() / expected.abs().max()) < 1e-6


def test_experts_differ_after_a_step_of_training(parent: Path) -> None:
    child = upcycle(model(mixture()), parent).train()
    ids = token_ids(2, 20)
    torch.autograd.backward(torch.nn.functional.cross_entropy(child(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    torch.optim.SGD(child.parameters(), lr=0.1).step()
    stack = dict(child.named_parameters())["text.layers.0.ffn.experts.up_proj"]
    assert float((stack[0] - stack[1]).detach().abs().max()) > 0


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"router": ROUTER | {"renormalize": False}}, "renormalize"),
        ({"router": ROUTER | {"scaling_factor": 2.5}}, "scaling_factor"),
        ({"num_shared_experts": 1}, "num_shared_experts"),
        ({"capacity_factor": 1.0}, "capacity_factor"),
        ({"intermediate_size": 32}, "shape"),
        ({"expert_bias": True}, "found none"),
        ({"activation": "gelu_tanh"}, "activation is gelu_tanh, and silu"),
        ({"clamp": {"limit": 1.0}}, "clamp"),
    ],
)
def test_a_mixture_that_would_change_the_logits_is_refused(parent: Path, others: Json, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        upcycle(model(mixture() | others), parent)


def test_other_layers_compute_what_the_parent_s_do(parent: Path) -> None:
    """Positions have no tensors, so that no shape tells of them."""
    parts = {"attention": gqa(position={**ROPE, "theta": 100.0}), "ffn": mixture()}
    child = graph_of(text_of(parts, [{"attention": "attention", "ffn": "ffn", "repeat": 2}]))
    with pytest.raises(UserError, match=r"attention: position is .* outputs would differ"):
        upcycle(child, parent)
