"""Interface for running a layer whose tokens are divided among tensor-parallel ranks (sequence parallelism)."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class RunsSplit(Protocol):
    """Runs layers on a rank's share of the tokens (`l4spec.runtime.parallel.tokens`)."""

    def run(self, module: Any, inputs: Sequence[Tensor | None], context: Any) -> Tensor:
        """Output of a layer's module on this rank in a pass of this context."""
        ...
