"""The room of learned absolute positions."""

from l4spec.layers.base import LayerKind
from l4spec.layers.learned_position.cost import declare
from l4spec.layers.learned_position.spec import LearnedPositionSpec

KIND = LayerKind(
    spec=LearnedPositionSpec,
    declare=declare,
    module="l4spec.layers.learned_position.module:LearnedPosition",
    slot="embedding",
)
