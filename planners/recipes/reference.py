"""The reference model of DPO, and of RL with a KL: the model as it entered the phase, frozen, run forward by a run.

A run loads it once, shares its weights among ranks as those of the model, and asks it for log probabilities: in DPO of
both answers of each pair, every step; in RL of a batch of answers, once for all `iterations` on it. Nothing is kept of
these passes, which end before the update begins: its activations are more than those of a forward pass.
"""

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.spec.recipe import Phase
from planners.counts.flops import model_flops
from planners.plan_types import Plan
from planners.recipes.recipe_plan import ReferencePasses

SECONDS_PER_HOUR = 3600
REFERENCE_WEIGHTS = "reference weights"


def needs_reference(phase: Phase) -> bool:
    """True where the loss of a phase compares the model with what it was."""
    return phase.kind == "dpo" or (phase.kind == "rl" and phase.kl_weight > 0)


def reference_flops(graph: LayerGraph, phase: Phase) -> int:
    """FLOPs of all forward passes of the reference over a phase, heads of all tokens included."""
    if not needs_reference(phase):
        return 0
    batches = phase.tokens / (phase.batch * phase.context)
    if phase.kind == "rl":
        batches /= phase.iterations
    return round(model_flops(graph, Work(phase.batch, phase.context, phase="train")) * batches)


def reference_passes(phase: Phase, graph: LayerGraph, rate: float | None, step: Plan) -> ReferencePasses | None:
    """Cost of the reference at `rate` FLOP/s of a GPU; None where the phase has none. `step` is the plan of a step."""
    if not needs_reference(phase):
        return None
    flops = reference_flops(graph, phase)
    terms = step.memory_per_device.terms
    return ReferencePasses(
        flops=flops,
        gpu_hours=None if rate is None else flops / rate / SECONDS_PER_HOUR,
        in_step=phase.kind == "rl" and phase.rollouts is not None,
        weights_bytes=sum(term.bytes for term in terms if term.name == REFERENCE_WEIGHTS),
    )


__all__ = ["needs_reference", "reference_flops", "reference_passes"]
