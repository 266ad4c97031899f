"""The torch module of a patch merger."""

from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, Linear, Norm, activation, empty
from l4spec.layers.patch_merger.spec import PatchMergerSpec


class PatchMerger(LayerModule):
    """act(fc(fold(norm(x)))), or act(fc(norm(fold(x)))) where folded patches are normed together."""

    def __init__(self, spec: PatchMergerSpec, width: Width) -> None:
        super().__init__()
        self.fold, self.norms_folded = spec.fold, spec.norms == "folded"
        folded = width.hidden_size * spec.fold**2
        normed = folded if self.norms_folded else width.hidden_size
        self.norm = _LayerNorm(normed, spec.eps) if spec.norm == "layernorm" else Norm(normed, spec.eps)
        self.fc = Linear(folded, spec.output_size, bias=spec.bias)
        self.act = activation(spec.activation)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[tiles, patches (+ 1), hidden] to [tiles, patches / fold^2, output]; a class token is dropped."""
        if context.class_token != "none":
            x = x[:, :-1] if context.class_token == "last" else x[:, 1:]
        folded = self.norm(self._folded(x, context)) if self.norms_folded else self._folded(self.norm(x), context)
        result: Tensor = self.act(self.fc(folded))
        return result

    def _folded(self, x: Tensor, context: Context) -> Tensor:
        """Neighbours of a grid of patches as one vector, ordered (row in the fold, column in it, channel)."""
        rows, columns = (side // self.fold for side in context.layout.grid)
        cut = x.reshape(x.shape[0], rows, self.fold, columns, self.fold, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return cut.reshape(x.shape[0], rows * columns, -1)


class _LayerNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = empty(width), empty(width), eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
