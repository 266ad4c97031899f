"""The room of residual addition."""

from l4spec.layers.base import LayerKind
from l4spec.layers.add.cost import declare
from l4spec.layers.add.spec import AddSpec

KIND = LayerKind(spec=AddSpec, declare=declare, module="l4spec.layers.add.module:Add", slot="wiring")
