"""The room of laying streams side by side."""

from l4spec.layers.base import LayerKind
from l4spec.layers.concat.cost import declare
from l4spec.layers.concat.spec import ConcatSpec

KIND = LayerKind(spec=ConcatSpec, declare=declare, module="l4spec.layers.concat.module:Concat", slot="wiring")
