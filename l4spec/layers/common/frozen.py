"""Matmuls without gradients in otherwise trained layers."""

from l4spec.layers.declaration import Matmul


class FrozenMatmul(Matmul):
    """A product that no gradient passes."""

    @property
    def backward_flops(self) -> int:
        """None."""
        return 0
