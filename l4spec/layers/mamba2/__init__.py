"""The room of Mamba-2."""

from l4spec.layers.base import LayerKind
from l4spec.layers.mamba2.cost import declare
from l4spec.layers.mamba2.spec import Mamba2Spec

KIND = LayerKind(
    spec=Mamba2Spec,
    declare=declare,
    module="l4spec.layers.mamba2.module:Mamba2",
    slot="attention",
    eager="l4spec.layers.mamba2.ledger:EAGER",
)
