"""The room of single linear layer."""

from l4spec.layers.base import LayerKind
from l4spec.layers.linear.cost import declare
from l4spec.layers.linear.spec import LinearSpec

KIND = LayerKind(
    spec=LinearSpec,
    declare=declare,
    module="l4spec.layers.linear.module:LinearLayer",
    slot="vision",
    parallel="l4spec.layers.linear.parallel:GatheredLinear",
)
