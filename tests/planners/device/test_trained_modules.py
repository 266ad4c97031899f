"""Laws of the memory of modules of multi-token prediction: what several stages, tied heads and ZeRO change."""

from dataclasses import replace

import pytest

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.counts.mtp import count_mtp
from planners.counts.weights import scheme_of
from planners.device.activations import activation_rates
from planners.device.stages import every_stage
from planners.device.trained_modules import module_kept, module_params
from planners.device.training_state import StageState, TrainSetting, stage_state
from tests.planners.models import graph

V3 = "deepseek-v3"
EMBEDDING = 129_280 * 7168
TWO = "text.mtp.num_modules=2"


def states(model: LayerGraph, layout: Layout, *, zero_stage: int = 1, **options: bool) -> list[StageState]:
    """Of each stage."""
    train = TrainSetting(zero_stage=zero_stage, **options)  # type: ignore[arg-type]  # flags alone
    cut = every_stage(model, scheme_of(quantization("bf16")), layout.tp, layout.ep, layout.pp)
    return [stage_state(model, train, layout, stage) for stage in cut]


def added(model: LayerGraph, layout: Layout, zero_stage: int = 1) -> StageState:
    """What modules add on the last stage, term by term."""
    with_them, without = (states(model, layout, zero_stage=zero_stage, with_modules=on) for on in (True, False))
    assert with_them[:-1] == without[:-1]
    last, before = with_them[-1], without[-1]
    terms = ("weights", "gradients", "optimizer", "gathered", "at_work")
    differences = {name: getattr(last, name) - getattr(before, name) for name in terms}
    return replace(last, chunks=(last.kept - before.kept,), **differences)


@pytest.mark.parametrize("overrides", [(), (TWO,)])
def test_one_device_has_the_parameters_of_all_modules(overrides: tuple[str, ...]) -> None:
    model = graph(V3, *overrides)
    counts, more = count_mtp(model), added(model, Layout())
    assert counts is not None
    assert sum(module_params(model, 1, 1).on_device(several_stages=False)) == counts.own
    assert (more.weights, more.gradients, more.optimizer) == (2 * counts.own, 4 * counts.own, 12 * counts.own)


def test_the_last_of_several_stages_has_a_copy_of_the_embedding() -> None:
    """As Megatron-LM gives it one."""
    model = graph(V3)
    one, several = added(model, Layout()), added(model, Layout(pp=4))
    assert several.weights - one.weights == 2 * EMBEDDING


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_a_further_module_adds_its_logits_and_what_it_keeps(kind: str) -> None:
    one, two = (graph(V3, f"text.mtp.num_modules={number}") for number in (1, 2))
    kept = [module_kept(model, 1, 8, kind) for model in (one, two)]  # type: ignore[arg-type]  # a kind
    train = {"checkpointing": kind, "with_modules": True}
    (first,), (second,) = (states(model, Layout(ep=8), **train) for model in (one, two))  # type: ignore[arg-type]
    assert kept[1][0] == kept[0][0]
    assert second.kept - first.kept == kept[1][1].kept
    assert second.at_work - first.at_work == activation_rates(one, 1, 8).per_logit_row


def test_the_largest_block_that_is_gathered_is_a_module() -> None:
    """A module of V3 is a block and a projection; of weights ZeRO 3 gathers two blocks of the model, which are more."""
    model, layout = graph(V3), Layout(ep=8, dp=2)
    (module,) = module_params(model, 1, 8).modules
    (state,) = states(model, layout, zero_stage=2, with_modules=True)
    assert state.gathered == 2 * sum(module)
    hidden = model.hidden_size
    beyond = 2 * hidden * hidden + 3 * hidden
    assert [added(model, layout, stage).gathered for stage in (1, 2, 3)] == [0, 2 * beyond, 2 * beyond]
