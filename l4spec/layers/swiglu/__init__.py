"""The room of SwiGLU feed-forward."""

from l4spec.layers.base import LayerKind
from l4spec.layers.swiglu.cost import declare
from l4spec.layers.swiglu.spec import SwiGLUSpec

KIND = LayerKind(
    spec=SwiGLUSpec,
    declare=declare,
    module="l4spec.layers.swiglu.module:SwiGLU",
    slot="ffn",
    eager="l4spec.layers.swiglu.ledger:EAGER",
)
