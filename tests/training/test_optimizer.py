"""Learning rates rise, fall and end where the schedule says; clipping bounds the norm."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.phase import OptimizerSpec, ScheduleSpec
from l4spec.training.optimizer import GradientNorm, clip, make_optimizer, rate_at, set_rate
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
