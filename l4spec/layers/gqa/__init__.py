"""The room of grouped-query attention."""

from l4spec.layers.base import LayerKind
from l4spec.layers.gqa.cost import declare
from l4spec.layers.gqa.spec import GQASpec

KIND = LayerKind(
    spec=GQASpec,
    declare=declare,
    module="l4spec.layers.gqa.module:GQA",
    slot="attention",
    parallel="l4spec.layers.gqa.parallel:RingGQA",
    divides_sequence=True,
    eager="l4spec.layers.gqa.ledger:EAGER",
)
