"""The room of GeGLU feed-forward."""

from l4spec.layers.base import LayerKind
from l4spec.layers.geglu.cost import declare
from l4spec.layers.geglu.spec import GeGLUSpec

KIND = LayerKind(
    spec=GeGLUSpec,
    declare=declare,
    module="l4spec.layers.geglu.module:GeGLU",
    slot="ffn",
    eager="l4spec.layers.geglu.ledger:EAGER",
)
