"""The room of language-model head."""

from l4spec.layers.base import LayerKind
from l4spec.layers.lm_head.cost import declare
from l4spec.layers.lm_head.spec import LMHeadSpec

KIND = LayerKind(
    spec=LMHeadSpec,
    declare=declare,
    module="l4spec.layers.lm_head.module:LMHead",
    slot="head",
    parallel="l4spec.layers.lm_head.parallel:VocabHead",
    eager="l4spec.layers.lm_head.ledger:EAGER",
)
