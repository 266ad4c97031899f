"""Tokens of one device in a training step, from which every payload is counted."""

from dataclasses import dataclass

from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import piece_of
from l4spec.units import ceil_div
from planners.device.training_state import TrainSetting


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Work of a device in one training step: `tokens` in `micro_batches`, of sequences cut into pieces of `piece`."""

    tokens: int
    micro_batches: int
    piece: int = 0

    @classmethod
    def of(cls, train: TrainSetting, layout: Layout, context: int, batch: int) -> "StepTokens":
        """The share of the busiest rank of `batch` sequences of `context` tokens."""
        sequences = max(ceil_div(batch, layout.dp * layout.ep), 1)
        micro_batches = ceil_div(sequences, min(train.micro_batch, sequences))
        return cls(sequences * ceil_div(context, layout.cp), micro_batches, piece_of(context, layout.cp))


__all__ = ["StepTokens"]
