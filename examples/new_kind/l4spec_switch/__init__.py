"""A routed kind from outside l4spec: the one-expert-a-token layer of Switch Transformer, found by an entry point."""

from l4spec.layers.base import LayerKind
from l4spec_switch.cost import declare
from l4spec_switch.spec import SwitchSpec

KIND = LayerKind(
    spec=SwitchSpec,
    declare=declare,
    module="l4spec_switch.module:Switch",
    slot="ffn",
    parallel="l4spec_switch.module:SwitchOnRanks",
    eager="l4spec_switch.ledger:EAGER",
)
