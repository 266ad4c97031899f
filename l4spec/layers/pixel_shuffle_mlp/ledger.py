"""Allocations of the module of the adapter after a vision tower; its time is predicted from its declaration."""

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import Work
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec


def _allocate(spec: PixelShuffleMLPSpec, width: Width, work: Work, ledger: Ledger) -> None:
    widths = (width.hidden_size * spec.fold**2, spec.intermediate_size, spec.output_size)
    shuffled, inner, narrow = (work.num_tokens * size * ledger.item for size in widths)
    if spec.fold == 1 or work.num_queries == 1:  # a tile as it lies
        shuffled = 0
    ledger.touch(max(shuffled + inner, 2 * inner, inner + narrow, 2 * narrow))  # each layer, each activation
    ledger.take(narrow)


EAGER = EagerLayer(_allocate, None, code="pixel_shuffle_mlp")
