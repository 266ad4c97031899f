"""The room of RMSNorm."""

from l4spec.layers.base import LayerKind
from l4spec.layers.rmsnorm.cost import declare
from l4spec.layers.rmsnorm.spec import RMSNormSpec

KIND = LayerKind(
    spec=RMSNormSpec,
    declare=declare,
    module="l4spec.layers.rmsnorm.module:RMSNorm",
    slot="norm",
    eager="l4spec.layers.rmsnorm.ledger:EAGER",
)
