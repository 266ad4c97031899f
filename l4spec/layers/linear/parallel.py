"""The linear layer with its outputs cut among ranks."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context
from l4spec.layers.common.parallel import Cuts, Ranks, enter, gather_last
from l4spec.layers.linear.module import LinearLayer
from l4spec.layers.linear.spec import LinearSpec


class GatheredLinear(LinearLayer):
    """Every rank computes its run of the outputs, and gets those of the others."""

    joins_itself = True

    def __init__(self, spec: LinearSpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        self.sizes = [len(run) for run in cuts["projected"]]
        own = spec.model_copy(update={"output_size": self.sizes[ranks.tp.index]})
        super().__init__(own, width)
        self.ranks = ranks

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[..., hidden] to [..., output]."""
        own = super().forward(enter(x, self.ranks.tp), context=context)
        return gather_last(own, self.ranks.tp, self.sizes)
