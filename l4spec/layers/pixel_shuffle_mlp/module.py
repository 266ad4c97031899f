"""The torch module of the adapter after a vision tower."""

from math import isqrt

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, Linear, activation
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec


class PixelShuffleMLP(LayerModule):
    """Drops the class token, folds fold x fold patches into one, then two linear layers, each with the activation."""

    summed_at = "fc2"

    def __init__(self, spec: PixelShuffleMLPSpec, width: Width) -> None:
        super().__init__()
        self.fold = spec.fold
        self.fc1 = Linear(width.hidden_size * spec.fold**2, spec.intermediate_size, bias=spec.bias)
        self.fc2 = Linear(spec.intermediate_size, spec.output_size, bias=spec.bias)
        self.act = activation(spec.activation)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[tiles, patches (+ 1), hidden] to [tiles, patches / fold^2, output]."""
        if context.class_token != "none":
            x = x[:, :-1] if context.class_token == "last" else x[:, 1:]
        result: Tensor = self.act(self.fc2(self.act(self.fc1(_pixel_shuffle(x, self.fold)))))
        return result


def _pixel_shuffle(x: Tensor, fold: int) -> Tensor:
    """A square grid of patches folded along both sides; channels ordered (row in the fold, column in it, channel)."""
    tiles, num_patches, channels = x.shape
    grid = isqrt(num_patches) // fold
    folded = x.reshape(tiles, grid, fold, grid, fold, channels).permute(0, 1, 3, 2, 4, 5)
    return folded.reshape(tiles, grid * grid, fold * fold * channels)
