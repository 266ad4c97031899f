"""Multi-head latent attention of which each rank has its heads, and of long sequences its tokens."""

from l4spec.layers.attention.ring import RingAttention
from l4spec.layers.base import Width
from l4spec.layers.common.parallel import Cuts, Ranks
from l4spec.layers.mla.module import MLA
from l4spec.layers.mla.spec import MLASpec


class RingMLA(MLA):
    """Latents of earlier ranks' tokens come from the rank before this one, and are expanded on every rank."""

    def __init__(self, spec: MLASpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        super().__init__(spec, width)
        self.expanded = RingAttention.of(self.expanded, ranks.cp)
        self.absorbed = RingAttention.of(self.absorbed, ranks.cp)
