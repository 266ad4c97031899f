"""The mixture of experts equals running every expert on every token, whatever path a batch takes."""

import pytest
import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.grouped_linear import grouped_linear
from l4spec.layers.common.modules import Context, TokenLayout, activation
from l4spec.layers.moe.module import MoE
from l4spec.layers.moe.spec import MoESpec
from tests.runtime.tiny import Json, moe, randomise

HIDDEN = 24
SPECS: dict[str, Json] = {
    "llama4": moe(num_experts_per_token=1, num_shared_experts=1),
    "two, on the input": moe(),
    "mixtral": moe(router={"score": "softmax", "renormalize": True}),
    "gelu": moe(activation="gelu_tanh", router={"score": "softmax"}),
    "qwen2": moe(num_shared_experts=1, shared_gate=True, router={"score": "softmax"}),
    "gpt-oss": moe(
        router={"score": "softmax", "renormalize": True, "bias": True},
        expert_bias=True,
        clamp={"limit": 0.5, "alpha": 1.702, "up_offset": 1.0},
    ),
    "many experts": moe(num_experts=50, num_experts_per_token=3),
    "groups": moe(
        num_experts=8,
        router={"score": "softmax", "num_groups": 4, "num_limited_groups": 2, "group_score": "max"},
    ),
}


def layer(spec: Json, dtype: torch.dtype = torch.float64) -> MoE:
    module = MoE(MoESpec.model_validate(spec), Width(HIDDEN, 64)).to(dtype)
    randomise(module, 1)
    return module


def context(rows: int, tokens: int, num_new: Tensor | None = None) -> Context:
    return Context(TokenLayout(rows, tokens, 0, torch.arange(tokens), num_new=num_new))


def inputs(rows: int, tokens: int) -> Tensor:
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def gated(spec: MoESpec, gate: Tensor, up: Tensor) -> Tensor:
    """The definition of the product."""
    if spec.clamp is None:
        return activation(spec.activation)(gate) * up
    gate, up = gate.clamp(max=spec.clamp.limit), up.clamp(-spec.clamp.limit, spec.clamp.limit)
    return gate / (1 + (-spec.clamp.alpha * gate).exp()) * (up + spec.clamp.up_offset)


def bias(module: MoE, name: str, expert: int) -> Tensor | float:
    """The bias of a projection of an expert, 0 without."""
    biases: Tensor | None = getattr(module.experts, f"{name}_bias")
    return 0.0 if biases is None else biases[expert]


def every_expert(module: MoE, x: Tensor) -> Tensor:
    """The definition: all experts on all tokens, unchosen ones with weight 0."""
    tokens = x.flatten(0, 1)
    scores, chosen = module.router(tokens)
    weights = torch.zeros(tokens.shape[0], module.spec.num_experts, dtype=x.dtype).scatter(1, chosen, scores)
    total = torch.zeros_like(tokens)
    for expert in range(module.spec.num_experts):
        weight = weights[:, expert, None]
        is_chosen = (chosen == expert).any(dim=1)[:, None]
        given = tokens * weight if module.spec.router.scales == "input" else tokens
        experts = module.experts
        gate = given @ experts.gate_proj[expert].T + bias(module, "gate", expert)
        up = given @ experts.up_proj[expert].T + bias(module, "up", expert)
        output = gated(module.spec, gate, up) @ experts.down_proj[expert].T + bias(module, "down", expert)
        total += torch.where(is_chosen, output if module.spec.router.scales == "input" else output * weight, 0)
    if module.shared_expert is not None:
        shared = module.shared_expert(tokens)
        shared_gate = module.shared_expert_gate
        total += shared if shared_gate is None else shared * shared_gate(tokens).sigmoid()
    return total.view_as(x)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 17)])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_touching_only_chosen_experts_changes_nothing(name: str, shape: tuple[int, int], with_gradients: bool) -> None:
    module, x = layer(SPECS[name]), inputs(*shape)
    with torch.set_grad_enabled(with_gradients):
        assert torch.allclose(module(x, context=context(*shape)), every_expert(module, x), rtol=1e-12, atol=1e-12)


def test_a_group_limited_choice_stays_in_its_groups() -> None:
    module = layer(SPECS["groups"])
    _, chosen = module.router(inputs(4, 30).flatten(0, 1))
    groups = chosen // 2
    assert all(len(set(row.tolist())) <= 2 for row in groups)
    assert len(set(groups.flatten().tolist())) == 4


def test_an_expert_drops_what_exceeds_its_capacity_in_order() -> None:
    spec = moe(num_experts=4, num_experts_per_token=1, capacity_factor=0.5)
    module, x = layer(spec), inputs(1, 32)
    _, chosen = module.router(x[0])
    with torch.no_grad():
        got = module(x, context=context(1, 32))[0]
        whole = every_expert(module, x)[0]
    seen = dict.fromkeys(range(4), 0)
    dropped = 0
    for token, expert in enumerate(chosen[:, 0].tolist()):
        seen[expert] += 1
        fits = seen[expert] <= 4  # 0.5 * 32 tokens / 4 experts
        dropped += not fits
        assert torch.allclose(got[token], whole[token] if fits else torch.zeros(HIDDEN, dtype=x.dtype), atol=1e-12)
    assert dropped


def test_padding_takes_no_expert_capacity() -> None:
    module = layer(moe(num_experts=4, num_experts_per_token=1, capacity_factor=1.0))
    x = inputs(1, 16)
    x[0, 8:] = x[0, 7]
    crowded = torch.cat((x[:, 8:], x[:, :8]), dim=1)
    with torch.no_grad():
        got = module(x, context=context(1, 16, torch.tensor([8])))
        assert torch.allclose(got[0, :4], every_expert(module, x)[0, :4], atol=1e-12)
        assert not torch.allclose(module(crowded, context=context(1, 16))[0, 8:12], got[0, :4], atol=1e-12)


def test_an_expert_without_rows_has_a_gradient_of_zero() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([2, 2, 5, 5], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x, weight: grouped_linear(x, weight, offsets), (x, weight))
    torch.autograd.backward(grouped_linear(x, weight, offsets).sum())
    assert weight.grad is not None
    assert not weight.grad[1].any()
    assert not weight.grad[3].any()
    assert weight.grad[0].any()


def test_the_grouped_operator_keeps_torchs_rules() -> None:
    offsets = torch.tensor([2, 2, 5], dtype=torch.int32)
    arguments = (torch.randn(5, 3, requires_grad=True), torch.randn(3, 4, 3, requires_grad=True), offsets)
    torch.library.opcheck(torch.ops.l4spec.grouped_linear.default, arguments)
