"""The room of early fusion."""

from l4spec.layers.base import LayerKind
from l4spec.layers.merge.cost import declare
from l4spec.layers.merge.spec import MergeSpec

KIND = LayerKind(spec=MergeSpec, declare=declare, module="l4spec.layers.merge.module:Merge", slot="wiring")
