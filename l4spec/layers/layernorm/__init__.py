"""The room of LayerNorm."""

from l4spec.layers.base import LayerKind
from l4spec.layers.layernorm.cost import declare
from l4spec.layers.layernorm.spec import LayerNormSpec

KIND = LayerKind(
    spec=LayerNormSpec,
    declare=declare,
    module="l4spec.layers.layernorm.module:LayerNorm",
    slot="norm",
    eager="l4spec.layers.layernorm.ledger:EAGER",
)
