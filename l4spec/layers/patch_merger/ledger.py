"""Allocations of the module of a patch merger; its time is predicted from its declaration."""

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer
from l4spec.layers.common.ledger import Ledger, rms_norm
from l4spec.layers.declaration import Work
from l4spec.layers.patch_merger.spec import PatchMergerSpec


def _allocate(spec: PatchMergerSpec, width: Width, work: Work, ledger: Ledger) -> None:
    elements = work.num_tokens * width.hidden_size * spec.fold**2
    folded, out = elements * ledger.item, work.num_tokens * spec.output_size * ledger.item
    copied = folded if spec.fold > 1 and work.num_queries > 1 else 0  # neighbours do not lie side by side
    if spec.norms == "patches":
        _norm(spec, ledger, work.num_tokens * spec.fold**2, width.hidden_size)
        ledger.touch(copied)
    else:
        ledger.take(copied)
        _norm(spec, ledger, work.num_tokens, width.hidden_size * spec.fold**2)
        ledger.free(copied)
    ledger.touch(2 * out)
    ledger.free(folded)
    ledger.take(out)


def _norm(spec: PatchMergerSpec, ledger: Ledger, rows: int, width: int) -> None:
    """Take the normed vectors."""
    if spec.norm == "rmsnorm":
        rms_norm(ledger, rows, width, weighted=True)
        return
    ledger.touch((width + 2) * rows * ledger.item)  # output, mean, 1 / std
    ledger.take(width * rows * ledger.item)


EAGER = EagerLayer(_allocate, None, code="patch_merger")
