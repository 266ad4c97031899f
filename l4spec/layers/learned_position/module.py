"""The torch module of learned absolute positions."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, empty
from l4spec.layers.learned_position.spec import LearnedPositionSpec


class LearnedPosition(LayerModule):
    """Adds the vector of each token's position; a vision tower's patches (and class token) are in order."""

    def __init__(self, spec: LearnedPositionSpec, width: Width) -> None:
        super().__init__()
        self.weight = empty(spec.num_positions, width.hidden_size)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to the same; ValueError for a sequence longer than the table."""
        layout = context.layout
        end = layout.start + layout.num_tokens
        require_places(end, self.weight.shape[0])
        if layout.is_uniform:
            return x + self.weight[layout.start : end]
        return x + self.weight[layout.positions.clamp(min=0)]


def require_places(num_tokens: int, num_positions: int) -> None:
    """Raise ValueError for a sequence longer than the table."""
    if num_tokens > num_positions:
        raise ValueError(f"{num_tokens} tokens are more than the {num_positions} learned positions")
