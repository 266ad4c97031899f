"""The room of sparse multi-head latent attention."""

from l4spec.layers.base import LayerKind
from l4spec.layers.sparse_mla.cost import declare
from l4spec.layers.sparse_mla.spec import SparseMLASpec

KIND = LayerKind(
    spec=SparseMLASpec,
    declare=declare,
    module="l4spec.layers.sparse_mla.module:SparseMLA",
    slot="attention",
    is_peak_predicted=False,
)
