"""The room of Kimi Delta Attention."""

from l4spec.layers.base import LayerKind
from l4spec.layers.kda.cost import declare
from l4spec.layers.kda.spec import KDASpec

KIND = LayerKind(
    spec=KDASpec,
    declare=declare,
    module="l4spec.layers.kda.module:KDA",
    slot="attention",
    eager="l4spec.layers.kda.ledger:EAGER",
)
