"""The room of plain feed-forward."""

from l4spec.layers.base import LayerKind
from l4spec.layers.mlp.cost import declare
from l4spec.layers.mlp.spec import MLPSpec

KIND = LayerKind(
    spec=MLPSpec,
    declare=declare,
    module="l4spec.layers.mlp.module:MLP",
    slot="ffn",
    eager="l4spec.layers.mlp.ledger:EAGER",
)
