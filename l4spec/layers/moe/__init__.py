"""The room of mixture of experts."""

from l4spec.layers.base import LayerKind
from l4spec.layers.moe.cost import declare
from l4spec.layers.moe.spec import MoESpec

KIND = LayerKind(
    spec=MoESpec,
    declare=declare,
    module="l4spec.layers.moe.module:MoE",
    slot="ffn",
    parallel="l4spec.layers.moe.parallel:ExpertParallelMoE",
    eager="l4spec.layers.moe.ledger:EAGER",
)
