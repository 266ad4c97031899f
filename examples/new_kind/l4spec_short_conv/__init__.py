"""A layer kind from outside l4spec: the gated short convolution of LFM2, found by an entry point."""

from l4spec.layers.base import LayerKind
from l4spec_short_conv.cost import declare
from l4spec_short_conv.spec import ShortConvSpec

KIND = LayerKind(spec=ShortConvSpec, declare=declare, module="l4spec_short_conv.module:ShortConv", slot="attention")
