"""The room of multi-head latent attention."""

from l4spec.layers.base import LayerKind
from l4spec.layers.mla.cost import declare
from l4spec.layers.mla.spec import MLASpec

KIND = LayerKind(
    spec=MLASpec,
    declare=declare,
    module="l4spec.layers.mla.module:MLA",
    slot="attention",
    parallel="l4spec.layers.mla.parallel:RingMLA",
    divides_sequence=True,
    eager="l4spec.layers.mla.ledger:EAGER",
)
