"""The room of the gated delta net."""

from l4spec.layers.base import LayerKind
from l4spec.layers.gated_delta_net.cost import declare
from l4spec.layers.gated_delta_net.spec import GatedDeltaNetSpec

KIND = LayerKind(
    spec=GatedDeltaNetSpec,
    declare=declare,
    module="l4spec.layers.gated_delta_net.module:GatedDeltaNet",
    slot="attention",
    eager="l4spec.layers.gated_delta_net.ledger:EAGER",
)
