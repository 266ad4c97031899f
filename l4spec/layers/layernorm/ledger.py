"""Allocations and timed pieces of the module of a LayerNorm; its time is an RMSNorm's."""

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, norm_pieces
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import Work
from l4spec.layers.layernorm.spec import LayerNormSpec


def _allocate(spec: LayerNormSpec, width: Width, work: Work, ledger: Ledger) -> None:
    ledger.touch((width.hidden_size + 2) * work.num_tokens * ledger.item)  # output, mean, 1 / std
    ledger.take(width.hidden_size * work.num_tokens * ledger.item)


EAGER = EagerLayer(_allocate, norm_pieces, code="rmsnorm")
