"""Balancing changes what a router learns, never what a model computes; and its losses cannot be gamed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, TokenLayout
from l4spec.layers.declaration import Phase, Work
from l4spec.layers.moe import balance
from l4spec.layers.moe.cost import declare
from l4spec.layers.moe.module import MoE
from l4spec.layers.moe.spec import MoESpec
from l4spec.runtime.model import Model
from tests.layers.test_moe_module import HIDDEN, context, inputs, layer
from tests.runtime.tiny import Json, gqa, graph_of, moe, randomised, text_of, token_ids

EXPERTS = 6
SOFTMAX: Json = {"score": "softmax"}
AUXILIARY: Json = {"auxiliary_loss": 0.01}


def random_logits(tokens: int, scale: float, shift: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, EXPERTS, generator=draw, dtype=torch.float64) * scale + shift


def shares_of(logits: Tensor, top_k: int) -> Tensor:
    chosen = logits.topk(top_k, dim=-1).indices
    counts: Tensor = torch.nn.functional.one_hot(chosen, EXPERTS).sum((0, 1)).double()
    return counts / counts.sum()


@settings(max_examples=60, deadline=None)
@given(
    score=st.sampled_from(["sigmoid", "softmax"]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    shift=st.sampled_from([-80.0, 0.0, 50.0]),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_the_auxiliary_loss_is_at_least_one_for_any_gate_however_small_its_scores(
    score: str, scale: float, shift: float, tokens: int, top_k: int, seed: int
) -> None:
    logits = random_logits(tokens, scale, shift, seed)
    probabilities = balance.gate_probabilities(logits, score)  # type: ignore[arg-type]  # drawn
    loss = balance.auxiliary_loss(shares_of(logits, top_k), probabilities.mean(0))
    assert torch.allclose(probabilities.sum(-1), torch.ones(tokens, dtype=torch.float64), atol=1e-12)
    assert float(loss) >= 1 - 1e-12  # sums of six shares, rounded


def test_the_textbook_loss_can_fall_below_one_which_is_why_its_value_is_not_reported() -> None:
    barely, shunned = [0.51, 0.49], [0.0, 1.0]
    probabilities = torch.tensor([barely, barely, shunned])
    shares = torch.tensor([2 / 3, 1 / 3])
    assert float(balance.switch_loss(shares, probabilities.mean(0))) < 0.95
    assert float(balance.auxiliary_loss(shares, probabilities.mean(0))) == pytest.approx(2 * (4 / 9 + 1 / 9))


def test_shrinking_every_sigmoid_score_gains_nothing() -> None:
    logits = random_logits(50, 1.0, 0.0, 3)
    far, further = (balance.gate_probabilities(logits - shift, "sigmoid").mean(0) for shift in (40.0, 400.0))
    assert torch.allclose(far, further, rtol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
def test_loss_and_gradient_equal_those_of_transformers(top_k: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = random_logits(64, 1.0, 0.0, 5).requires_grad_()
    theirs = load_balancing_loss_func((logits,), EXPERTS, top_k)
    assert isinstance(theirs, Tensor)
    ours = balance.auxiliary_loss(
        shares_of(logits.detach(), top_k), balance.gate_probabilities(logits, "softmax").mean(0)
    )
    (their_gradient,), (our_gradient,) = torch.autograd.grad(theirs, logits), torch.autograd.grad(ours, logits)
    assert torch.allclose(their_gradient, top_k * our_gradient, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("over", ["batch", "sequence"])
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_a_layer_adds_the_losses_of_its_definition_to_the_backward_pass(score: str, over: str) -> None:
    options = {"auxiliary_loss": 0.3, "counted_over": over, "z_loss": 0.05}
    module = layer(moe(balance=options, router={"score": score, "scales": "output"})).train()
    plain = layer(moe(router={"score": score, "scales": "output"})).train()
    x = inputs(2, 9)
    actual = gradient(module, x)
    logits = plain.router.logits(x.flatten(0, 1))
    probabilities = balance.gate_probabilities(logits, score)  # type: ignore[arg-type]  # a parameter
    rows = [slice(0, 18)] if over == "batch" else [slice(0, 9), slice(9, 18)]
    losses = [balance.switch_loss(shares_of(logits[row].detach(), 2), probabilities[row].mean(0)) for row in rows]
    added: Tensor = 0.3 * torch.stack(losses).mean() + 0.05 * logits.logsumexp(-1).square().mean()
    expected = gradient(plain, x) + torch.autograd.grad(added, plain.router.weight)[0]
    assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-13)


def gradient(module: MoE, x: Tensor) -> Tensor:
    output = module(x, context=context(*x.shape[:2]))
    loss: Tensor = output.square().sum()
    result: Tensor = torch.autograd.grad(loss, module.router.weight)[0]
    return result


@pytest.mark.parametrize("options", [AUXILIARY, {"z_loss": 0.1}, {"expert_choice": 1.0}])
def test_balance_changes_nothing_of_a_model_that_only_runs(options: Json) -> None:
    x = inputs(2, 9)
    with torch.no_grad():
        ours, plain = (layer(spec).eval()(x, context=context(2, 9)) for spec in (moe(balance=options), moe()))
    assert torch.equal(ours, plain)


def test_a_bias_changes_choices_and_never_gates() -> None:
    router = layer(moe(router={"score": "sigmoid", "correction_bias": True})).router
    tokens = inputs(1, 30).flatten(0, 1)
    assert router.correction_bias is not None
    router.correction_bias.zero_()
    _, before = router(tokens)
    router.correction_bias.copy_(torch.tensor([3.0, 0, 0, 0, 0, -3.0]))
    scores, experts = router(tokens)
    assert not torch.equal(before, experts)
    assert bool((experts == 0).any(dim=1).all())
    assert torch.equal(scores, router.logits(tokens).sigmoid().gather(1, experts))


@given(load=st.lists(st.integers(0, 100), min_size=2, max_size=8), seed=st.integers(0, 9))
def test_a_moved_bias_is_centred_and_favours_who_got_less(load: list[int], seed: int) -> None:
    loads = torch.tensor(load, dtype=torch.float64)
    bias = torch.randn(len(load), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = balance.moved_bias(bias, loads, 0.1)
    steps = moved - bias
    assert abs(float(moved.sum())) < 1e-12
    assert float(steps[loads.argmin()]) >= float(steps[loads.argmax()])


def test_experts_that_choose_take_the_same_number_of_tokens_each() -> None:
    module = layer(moe(balance={"expert_choice": 1.0})).train()
    seen: list[Tensor] = []
    given_context = context(2, 9)
    given_context.record = lambda node, counts, dropped: seen.append(counts)
    module(inputs(2, 9), context=given_context)
    assert seen[0].tolist() == [6] * 6  # 18 tokens, 2 choices each, 6 experts


def test_experts_that_choose_give_what_running_every_expert_on_its_tokens_gives() -> None:
    module = layer(moe(balance={"expert_choice": 1.5})).train()
    x = inputs(2, 9)
    tokens = x.flatten(0, 1)
    logits = module.router.logits(tokens)
    is_taken = balance.chosen_by_experts(logits, 9)
    expected = torch.zeros_like(tokens)
    for expert, row in is_taken.t().nonzero().tolist():
        expected[row] += module.experts.single(tokens[row] * logits[row, expert].sigmoid(), expert).detach()
    assert torch.allclose(module(x, context=context(2, 9)).flatten(0, 1), expected, rtol=1e-10, atol=1e-12)


def test_padding_is_neither_counted_nor_chosen() -> None:
    num_new = torch.tensor([9, 4])
    for options in (AUXILIARY, {"expert_choice": 1.0}):
        module = layer(moe(balance=options)).train()
        seen: list[Tensor] = []
        padded = Context(TokenLayout(2, 9, 0, torch.arange(9), num_new=num_new))
        padded.record = lambda node, counts, dropped, seen=seen: seen.append(counts)
        module(inputs(2, 9), context=padded)
        assert int(seen[0].sum()) in (13 * 2, 6 * 5)  # of experts that choose, each takes ceil(13 * 2 / 6)


def test_drops_of_a_capacity_are_counted() -> None:
    module = layer(moe(capacity_factor=0.5)).train()
    seen: list[int] = []
    given_context = context(2, 9)
    given_context.record = lambda node, counts, dropped: seen.append(int(dropped))
    module(inputs(2, 9), context=given_context)
    assert seen[0] >= 36 // 2  # half of all choices find no room, or more where an expert has less


@pytest.mark.parametrize("options", [AUXILIARY | {"z_loss": 0.01}, {"expert_choice": 1.0}])
def test_activation_checkpointing_counts_and_adds_nothing_twice(options: Json) -> None:
    def trained(*, recompute: bool) -> tuple[dict[str, Tensor], list[tuple[str, list[int]]]]:
        model = balanced_model(options)
        model.checkpointing = "full" if recompute else "none"
        seen: list[tuple[str, list[int]]] = []
        model.record = lambda node, counts, dropped: seen.append((node, counts.tolist()))
        torch.autograd.backward(model(token_ids(2, 12, 97)).square().mean())
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, seen

    plain, once = trained(recompute=False)
    again, counted = trained(recompute=True)
    assert once == counted
    assert len(once) == 2
    for name, gradient_once in plain.items():
        assert torch.allclose(gradient_once, again[name], rtol=1e-9, atol=1e-12)


def balanced_model(options: Json) -> Model:
    parts = {"attention": gqa(), "moe": moe(balance=options, num_shared_experts=1)}
    graph = graph_of(text_of(parts, [{"attention": "attention", "ffn": "moe", "repeat": 2}]))
    return randomised(graph, dtype="fp64").train()


def test_a_plan_counts_the_tokens_that_experts_take() -> None:
    def flops(options: Json | None, phase: Phase) -> int:
        declared = declare(MoESpec.model_validate(moe(balance=options)), Width(HIDDEN, 64))
        return sum(op.flops for op in declared.operations(Work(2, 9, phase=phase)))

    assert flops({"expert_choice": 1.0}, "train") == flops(None, "train")
    assert flops({"expert_choice": 2.0}, "train") > flops(None, "train")
    assert flops({"expert_choice": 2.0}, "decode") == flops(None, "decode")


@pytest.mark.parametrize(
    ("options", "router", "message"),
    [
        ({"bias_update": 0.1}, {"score": "sigmoid"}, "correction_bias"),
        ({"expert_choice": 1.0}, {"score": "sigmoid", "correction_bias": True}, "leave out router.correction_bias"),
        ({"expert_choice": 4.0}, {"score": "sigmoid"}, "more tokens than there are"),
        ({"counted_over": "sequence"}, {"score": "sigmoid"}, "needs balance.auxiliary_loss"),
    ],
)
def test_what_cannot_be_balanced_so_is_refused(options: Json, router: Json, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoESpec.model_validate(moe(balance=options, router=router))
