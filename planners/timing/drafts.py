"""Decode steps with drafts: a module proposes k tokens one by one, the model checks them with its own in one step.

seconds = check(k + 1 tokens of each sequence) + k x module, and the step brings 1 + accepted tokens. Of k drafts the
first is accepted with the first probability, the second with the second if the first was, and so on.
"""

from dataclasses import replace
from itertools import accumulate
from operator import mul

from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from planners.latency_types import KindLatency, StepLatency
from planners.timing.layer_demand import Step
from planners.timing.step import Drafts, StepModel


def mean_accepted(acceptance: tuple[float, ...]) -> float:
    """Drafted tokens that a step accepts on average: the sum over positions of the products of their shares."""
    total: float = sum(accumulate(acceptance, mul))
    return total


def module_model(target: StepModel, module: LayerGraph) -> StepModel:
    """The step model of a declared module in the target's layout, without its pipeline: it runs on the last stage."""
    layout = Layout(tp=target.layout.tp, ep=target.layout.ep)
    return replace(target, graph=module, layout=layout, drafts=None)


def drafting(target: StepModel, module: LayerGraph, acceptance: tuple[float, ...]) -> StepModel:
    """The target model, whose decode steps verify the module's drafts."""
    return replace(target, drafts=Drafts(module_model(target, module), acceptance))


def checking(decode: float, context: float, drafted: int) -> Step:
    """The step that checks drafts: each sequence is a chunk of its last and its drafted tokens after its cache.

    So its cache is read once for all of them, and the head runs for each. `context` counts the last token.
    """
    checked = 1 + drafted
    return Step(
        prompt_tokens=decode * checked,
        prompt_length=context - 1 + checked,
        prompt_cached=context - 1,
        logit_rows=decode * checked,
    )


def tokens_per_step(model: StepModel) -> float:
    """Tokens that a decode step brings to a sequence on average; 1 without drafts."""
    return 1.0 if model.drafts is None else 1.0 + mean_accepted(model.drafts.acceptance)


def decode_seconds(model: StepModel, step: Step, *, server: bool = True) -> float:
    """Seconds of a decode step, with its drafts. The model must have fitted factors."""
    if model.drafts is None:
        return model.seconds(step, server=server)
    drafted = len(model.drafts.acceptance)
    checked = model.seconds(checking(step.decode, step.context, drafted), server=server)
    return checked + drafted * model.drafts.module.seconds(step, server=False)


def decode_time(model: StepModel, step: Step) -> StepLatency:
    """The time of a decode step, kind by kind, the module's kinds of all drafts last."""
    if model.drafts is None:
        return model.time(step)
    drafted = len(model.drafts.acceptance)
    kinds = model.time(checking(step.decode, step.context, drafted)).by_kind
    module = model.drafts.module.time(step, server=False)
    return StepLatency.of((*kinds, *(_repeated(kind, drafted) for kind in module.by_kind)))


_MODULE = "module "


def is_of_module(kind: KindLatency) -> bool:
    """True if a kind of a decode step belongs to the drafting module."""
    return kind.name.startswith(_MODULE)


def _repeated(kind: KindLatency, times: int) -> KindLatency:
    """A kind of the module's layers in as many steps."""
    estimate = kind.estimate_seconds
    return KindLatency.of(
        f"{_MODULE}{kind.name}",
        times * kind.count,
        times * kind.compute_seconds,
        times * kind.memory_seconds,
        times * kind.links_seconds,
        None if estimate is None else times * estimate,
    )
