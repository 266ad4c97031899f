"""The kind `add`: residual addition."""

from l4spec.layers.add.cost import declare
from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import LayerKind

KIND = LayerKind(
    spec=AddSpec,
    declare=declare,
    module="l4spec.layers.add.module:Add",
    slot="wiring",
    eager="l4spec.layers.add.ledger:EAGER",
)
