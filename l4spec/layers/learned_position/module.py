"""The torch module of learned absolute positions."""

from math import isqrt

from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, empty
from l4spec.layers.learned_position.spec import LearnedPositionSpec


class LearnedPosition(LayerModule):
    """Adds the vector of each token's position; a vision tower's patches (and class token) are in order."""

    def __init__(self, spec: LearnedPositionSpec, width: Width) -> None:
        super().__init__()
        self.interpolated = spec.interpolated
        self.weight = empty(spec.num_positions, width.hidden_size)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to the same; ValueError for a sequence longer than the table."""
        layout = context.layout
        if self.interpolated:
            return x + _laid_over(self.weight, layout.grid)
        end = layout.start + layout.num_tokens
        require_places(end, self.weight.shape[0])
        if layout.is_uniform:
            return x + self.weight[layout.start : end]
        return x + self.weight[layout.positions.clamp(min=0)]


def _laid_over(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A square table [side^2, hidden] laid over rows and columns [rows * columns, hidden]: corners on corners."""
    side, hidden = isqrt(table.shape[0]), table.shape[1]
    if grid == (side, side):
        return table
    image = table.view(1, side, side, hidden).permute(0, 3, 1, 2)
    laid = nn.functional.interpolate(image, size=grid, mode="bilinear", align_corners=True)
    return laid.permute(0, 2, 3, 1).reshape(-1, hidden)


def require_places(num_tokens: int, num_positions: int) -> None:
    """Raise ValueError for a sequence longer than the table."""
    if num_tokens > num_positions:
        raise ValueError(f"{num_tokens} tokens are more than the {num_positions} learned positions")
