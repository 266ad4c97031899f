"""Schema of the plain two-layer feed-forward network."""

from typing import Literal, Self

from l4spec.layers.base import LayerSpec, Size


class MLPSpec(LayerSpec):
    """Feed-forward layer GELU(x W_up) W_down, as in GPT-2 and vision transformers."""

    kind: Literal["mlp"]
    intermediate_size: Size
    """Width between the two projections."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """Exact GELU, its tanh approximation, or ReLU."""
    bias: bool = True
    """Biases on both projections."""

    def narrowed(self, tp: int) -> Self:
        """The width between the two projections divided."""
        return self.model_copy(update={"intermediate_size": self.intermediate_size // tp})
