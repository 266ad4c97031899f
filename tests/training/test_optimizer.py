"""Learning rates rise, fall and end where the schedule says; clipping bounds the norm."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.phase import OptimizerSpec, ScheduleSpec
from l4spec.training.optimizer import GradientNorm, clip, make_optimizer, rate_at, set_rate, sum_of_squares
from tests.runtime.tiny import llama4_text


@given(kind=st.sampled_from(["constant", "linear", "cosine"]), warmup=st.floats(0, 1), steps=st.integers(1, 200))
def test_rates_stay_between_nothing_and_the_peak(kind: str, warmup: float, steps: int) -> None:
    schedule = ScheduleSpec.model_validate({"kind": kind, "warmup": warmup, "final": 0.1})
    rates = [rate_at(schedule, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_phase_ends_at_the_final_rate(kind: str) -> None:
    schedule = ScheduleSpec.model_validate({"kind": kind, "warmup": 0.1, "final": 0.05})
    assert rate_at(schedule, 99, 100) == pytest.approx(0.05)
    assert rate_at(schedule, 9, 100) == 1.0


def test_only_matrices_decay_and_rates_follow_the_peak() -> None:
    from tests.runtime.tiny import graph_of

    model = distribute(build(graph_of(llama4_text()), "meta"), Layout(), device="cpu", train=True)
    optimizer = make_optimizer(model, OptimizerSpec(learning_rate=0.1, weight_decay=0.5))
    decays = {p.dim() > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.5, False: 0.0}
    assert [set_rate(optimizer, share) for share in (0.5, 1.0, 0.25)] == pytest.approx([0.05, 0.1, 0.025])


def test_a_clipped_gradient_has_the_largest_norm_and_a_small_one_is_left_alone() -> None:
    from tests.runtime.tiny import graph_of

    model = distribute(build(graph_of(llama4_text()), "meta"), Layout(), device="cpu", train=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().norm()
    norm = GradientNorm(model)
    assert float(norm()) == pytest.approx(float(whole))
    clip(model.parameters(), norm(), 0.5)
    assert float(norm()) == pytest.approx(0.5, rel=1e-5)
    clip(model.parameters(), norm(), 1.0)
    assert float(norm()) == pytest.approx(0.5, rel=1e-5)


def test_the_norm_of_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 11)
    whole = float(x.double().square().sum())
    for piece in (1, 10, 77, 1000):
        monkeypatch.setattr("l4spec.training.optimizer._PIECE", piece)
        assert float(sum_of_squares(x)) == pytest.approx(whole, rel=1e-14)
        assert float(sum_of_squares(x.t())) == pytest.approx(whole, rel=1e-14)
    assert float(sum_of_squares(torch.empty(0))) == 0


def test_a_fused_step_is_adamw_by_its_definition() -> None:
    from tests.runtime.tiny import graph_of

    model = distribute(build(graph_of(llama4_text()), "meta", "fp64"), Layout(), device="cpu", train=True)
    spec = OptimizerSpec(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(model, spec)
    expected, (beta1, beta2) = {}, spec.betas
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        decayed = parameter.detach() * (1 - 0.1 * (0.5 if parameter.dim() > 1 else 0.0))
        first, second = (1 - beta1) * parameter.grad, (1 - beta2) * parameter.grad.square()
        step = first / (1 - beta1) / ((second / (1 - beta2)).sqrt() + spec.eps)
        expected[name] = decayed - 0.1 * step
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, expected[name], rtol=1e-12, atol=1e-12), name  # fp64's rounding, tenfold
