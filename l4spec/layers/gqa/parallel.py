"""Grouped-query attention of which each rank has its heads, and of long sequences its tokens."""

from l4spec.layers.attention.ring import RingAttention
from l4spec.layers.base import Width
from l4spec.layers.common.parallel import Cuts, Ranks
from l4spec.layers.gqa.module import GQA
from l4spec.layers.gqa.spec import GQASpec


class RingGQA(GQA):
    """Keys and values of earlier ranks' tokens come from the rank before this one."""

    def __init__(self, spec: GQASpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        super().__init__(spec, width)
        self.attention = RingAttention.of(self.attention, ranks.cp)
