"""The room of vision adapter."""

from l4spec.layers.base import LayerKind
from l4spec.layers.pixel_shuffle_mlp.cost import declare
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec

KIND = LayerKind(
    spec=PixelShuffleMLPSpec,
    declare=declare,
    module="l4spec.layers.pixel_shuffle_mlp.module:PixelShuffleMLP",
    slot="vision",
    eager="l4spec.layers.pixel_shuffle_mlp.ledger:EAGER",
)
