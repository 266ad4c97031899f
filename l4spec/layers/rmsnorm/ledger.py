"""Allocations and timed pieces of the module of an RMSNorm."""

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, norm_pieces
from l4spec.layers.common.ledger import Ledger, rms_norm
from l4spec.layers.declaration import Work
from l4spec.layers.rmsnorm.spec import RMSNormSpec


def _allocate(spec: RMSNormSpec, width: Width, work: Work, ledger: Ledger) -> None:
    rms_norm(ledger, work.num_tokens, width.hidden_size, weighted=True, unit_offset=spec.unit_offset)


EAGER = EagerLayer(_allocate, norm_pieces, code="rmsnorm")
