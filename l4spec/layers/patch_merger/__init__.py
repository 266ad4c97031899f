"""The room of patch mergers."""

from l4spec.layers.base import LayerKind
from l4spec.layers.patch_merger.cost import declare
from l4spec.layers.patch_merger.spec import PatchMergerSpec

KIND = LayerKind(
    spec=PatchMergerSpec,
    declare=declare,
    module="l4spec.layers.patch_merger.module:PatchMerger",
    slot="vision",
    eager="l4spec.layers.patch_merger.ledger:EAGER",
)
