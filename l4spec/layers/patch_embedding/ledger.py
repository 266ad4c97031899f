"""Allocations of the module of a patch embedding; its time is predicted from its declaration."""

from math import prod

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import Work
from l4spec.layers.patch_embedding.spec import PatchEmbeddingSpec


def _allocate(spec: PatchEmbeddingSpec, width: Width, work: Work, ledger: Ledger) -> None:
    num_pixels = prod(spec.kernel)
    patches, cut = (work.num_sequences * spec.grid**2 * size * ledger.item for size in (width.hidden_size, num_pixels))
    out = work.num_tokens * width.hidden_size * ledger.item
    is_cut = (spec.grid > 1 and spec.patch_size > 1) or spec.temporal_patch_size > 1
    ledger.touch((cut if is_cut or work.num_sequences > 1 else 0) + patches)  # pixels in patch order, patches
    ledger.touch(2 * patches if spec.bias and not is_cut and spec.grid > 1 else 0)  # the bias added after
    ledger.touch(patches + (out if spec.class_token != "none" else 0))
    ledger.take(out)


EAGER = EagerLayer(_allocate, None, code="patch_embedding")
