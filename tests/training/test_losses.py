"""Losses of post-training equal trl's, and those of distillation equal torch's; each has its laws."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from l4spec.layers.common.parallel import Axis
from l4spec.runtime.parallel.loss import IGNORED, Scored
from l4spec.training.losses.distillation import DistillObjective, divergence, dynamic_weight, top_k_logits
from l4spec.training.losses.policy import (
    Algorithm,
    PolicyObjective,
    advantages,
    kl_estimate,
    pass_at_k,
    surrogate,
    token_weights,
)
from l4spec.training.losses.preference import DpoObjective, dpo_loss

TRL: dict[str, Any] = json.loads(Path(__file__).with_name("trl_losses.json").read_text(encoding="utf-8"))
VOCAB = 11


def scored(logits: Tensor, labels: Tensor, **extras: Tensor) -> Scored:
    return Scored(logits, labels, range(logits.shape[-1]), Axis(), (logits.shape[-1],), extras)


def from_log_probs(log_probs: Tensor, mask: Tensor, **extras: Tensor) -> Scored:
    """Logits of two tokens of which the second, the label, has these log probabilities."""
    other = torch.log1p(-log_probs.exp())
    labels = torch.ones_like(mask).masked_fill(mask == 0, IGNORED)
    return scored(torch.stack((other, log_probs), dim=-1), labels, **extras)


@pytest.mark.parametrize("name", sorted(TRL["losses"]))
def test_the_loss_of_a_batch_is_that_of_trl(name: str) -> None:
    given_ = {key: torch.tensor(TRL[key]) for key in ("now", "old", "reference", "mask", "rewards")}
    algorithm: Algorithm = name.split(maxsplit=1)[0]  # type: ignore[assignment]  # names begin with it
    batch = from_log_probs(given_["now"].double(), given_["mask"])
    extras = {
        "old": given_["old"].double() * given_["mask"],
        "reference": given_["reference"].double() * given_["mask"],
        "advantages": advantages(given_["rewards"].double().view(2, 3), algorithm).flatten(),
        "weights": token_weights(batch.labels, algorithm, TRL["most"]),
    }
    kl_weight = 0.04 if "kl" in name else 0.0
    objective = PolicyObjective(0.2, 0.28, kl_weight, by_answer=algorithm == "reinforce")
    loss = objective(from_log_probs(given_["now"].double(), given_["mask"], **extras))
    assert float(loss) == pytest.approx(TRL["losses"][name], abs=1e-5)


def test_the_loss_of_pairs_is_that_of_trl() -> None:
    """trl has the chosen answers first, then the rejected; ours come in turn."""
    now, reference = (torch.tensor(TRL[key]).double() for key in ("now", "reference"))
    mask = torch.tensor(TRL["mask"])
    in_turn = torch.tensor([0, 3, 1, 4, 2, 5])
    whole = (reference * mask).sum(1)
    pairs = from_log_probs(now[in_turn], mask[in_turn], reference=whole[in_turn])
    assert float(DpoObjective(TRL["beta"], 3)(pairs)) == pytest.approx(TRL["dpo"], abs=1e-5)


def test_a_pair_s_loss_is_minus_log_sigmoid_of_what_the_policy_gained() -> None:
    log_probs, reference = torch.tensor([-1.0, -3.0, -2.0, -1.0]), torch.tensor([-2.0, -2.0, -2.0, -2.0])
    expected = -torch.nn.functional.logsigmoid(torch.tensor([0.1 * 2.0, 0.1 * -1.0]))
    assert torch.allclose(dpo_loss(log_probs, reference, 0.1), expected)
    assert torch.allclose(dpo_loss(reference, reference, 0.1), torch.tensor(2.0).log())


def test_pairs_may_be_divided_among_microbatches() -> None:
    draw = torch.Generator().manual_seed(1)
    logits, reference = torch.randn(4, 3, VOCAB, generator=draw), torch.randn(4, generator=draw)
    labels = torch.randint(VOCAB, (4, 3), generator=draw)
    objective = DpoObjective(0.3, 2)
    parts = [
        objective(scored(logits[rows], labels[rows], reference=reference[rows])) for rows in (slice(2), slice(2, 4))
    ]
    assert torch.allclose(objective(scored(logits, labels, reference=reference)), parts[0] + parts[1])


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_divergences_and_their_gradients_equal_torch_s(kind: Any) -> None:
    draw = torch.Generator().manual_seed(2)
    student = torch.randn(5, VOCAB, generator=draw, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, VOCAB, generator=draw, dtype=torch.float64)
    p, q = (teacher, student) if kind == "forward_kl" else (student, teacher)
    theirs = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    ours = divergence(student, teacher, kind)
    assert torch.allclose(ours, theirs)
    (expected,), (gradient,) = (torch.autograd.grad(x.sum(), student, retain_graph=True) for x in (theirs, ours))
    assert torch.allclose(gradient, expected)


def test_a_teacher_cut_to_its_best_tokens_is_renormalized_and_gives_finite_gradients() -> None:
    draw = torch.Generator().manual_seed(3)
    student = torch.randn(5, VOCAB, generator=draw, requires_grad=True)
    cut = top_k_logits(torch.randn(5, VOCAB, generator=draw), 3)
    assert torch.allclose(cut.softmax(-1).sum(-1), torch.ones(5))
    assert (cut.softmax(-1) > 0).sum(-1).tolist() == [3] * 5
    (gradient,) = torch.autograd.grad(divergence(student, cut, "forward_kl").sum(), student)
    assert bool(torch.isfinite(gradient).all())


def test_without_soft_targets_distillation_is_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(4)
    logits, teacher = (torch.randn(2, 6, VOCAB, generator=draw) for _ in range(2))
    labels = torch.randint(VOCAB, (2, 6), generator=draw)
    labels[0, :3] = IGNORED
    loss = DistillObjective("forward_kl", 0.0, 9.0)(scored(logits, labels, teacher=teacher))
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_a_student_that_is_its_teacher_has_no_soft_loss() -> None:
    logits = torch.randn(2, 6, VOCAB, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(2, 6, dtype=torch.long)
    loss = DistillObjective("forward_kl", 1.0, 12.0, temperature=2.0)(scored(logits, labels, teacher=logits))
    assert abs(float(loss)) < 1e-6


@given(student=st.floats(0.01, 10), teacher=st.floats(0.01, 10), most=st.floats(0, 1))
def test_a_dynamic_weight_is_whole_until_the_student_is_better_than_its_teacher(
    student: float, teacher: float, most: float
) -> None:
    def weight(loss: float) -> float:
        return float(dynamic_weight(torch.tensor(loss), torch.tensor(teacher), most))

    assert 0 <= weight(student) <= most + 1e-6
    assert weight(student + 1) >= weight(student) - 1e-6
    assert weight(teacher + student) == pytest.approx(most, abs=1e-6)
    assert weight(teacher / 2) == pytest.approx(most / 2, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_advantages_of_a_group_add_up_to_nothing(rewards: list[float]) -> None:
    for algorithm in ("grpo", "dr_grpo", "reinforce"):
        gains = advantages(torch.tensor([rewards], dtype=torch.float64), algorithm)
        assert abs(float(gains.sum())) < 1e-9


def test_a_ratio_beyond_its_bound_gives_no_gradient_where_it_would_go_further() -> None:
    now = torch.tensor([[0.5, -0.5]], requires_grad=True)
    for advantage, expected in ((1.0, [False, True]), (-1.0, [True, False])):
        loss = surrogate(now, torch.zeros(1, 2), torch.tensor([advantage]), 0.2, 0.2).sum()
        assert (torch.autograd.grad(loss, now)[0] != 0).tolist() == [expected]


@given(st.floats(-3, 0), st.floats(-3, 0))
def test_the_kl_estimate_is_never_negative(now: float, reference: float) -> None:
    assert float(kl_estimate(torch.tensor(now), torch.tensor(reference))) >= -1e-6


@given(n=st.integers(1, 20), data=st.data())
def test_pass_at_k_grows_with_k_and_is_the_share_for_one(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    chances = [pass_at_k(n, right, k) for k in range(1, n + 1)]
    assert chances[0] == pytest.approx(right / n)
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(chances))
    assert chances[-1] == (1.0 if right else 0.0)
