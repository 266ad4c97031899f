"""A rank between the pipeline stages before and after it: hidden states travel on, chosen tokens travel back.

Every tensor-parallel rank of a stage sends to the rank of the same place in the next one, so a token costs a rank its
hidden state once, which is the plan's `pp` row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from l4spec.layers.common.parallel import Axis, group_of


class Line:
    """The ranks that run the same sequences in other stages, and pending sends to the next of them."""

    def __init__(self, pp: Axis) -> None:
        self.pp = pp
        self.prepared: object = None
        """State that `train_step` reuses from one step to the next."""
        self._is_ahead = False
        self._leaving: tuple[dist.Work | None, Tensor] | None = None

    @property
    def is_first(self) -> bool:
        """True if this stage embeds the tokens."""
        return self.pp.index == 0

    @property
    def is_last(self) -> bool:
        """True if this stage computes the logits."""
        return self.pp.index == self.pp.size - 1

    def receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Receive the next tensor from the previous stage."""
        arriving = torch.empty(*shape, dtype=dtype, device=device)
        dist.recv(arriving, group=group_of(self.pp), group_src=self.pp.index - 1)
        return arriving

    def send(self, hidden: Tensor) -> None:
        """Send to the next stage, and wait until it has arrived, unless `runs_ahead`."""
        self.settle()
        hidden = hidden.contiguous()
        work = dist.isend(hidden, group=group_of(self.pp), group_dst=self.pp.index + 1)
        self._leaving = (work, hidden)
        if not self._is_ahead:
            self.settle()

    @contextmanager
    def runs_ahead(self) -> Iterator[None]:
        """Within the block a stage computes the next piece while the one before is on its way.

        One at a time is on its way: memory is bounded, and a stage is never far ahead.
        """
        self._is_ahead = True
        try:
            yield
        finally:
            self._is_ahead = False
        self.settle()

    def settle(self) -> None:
        """Wait until pending sends are complete."""
        if self._leaving is not None and self._leaving[0] is not None:
            self._leaving[0].wait()
        self._leaving = None

    def exchanged(self, x: Tensor) -> Tensor:
        """Between the first stage and the last: the other one's `x`."""
        other, peer = torch.empty_like(x), 0 if self.is_last else self.pp.size - 1
        group = group_of(self.pp)
        ops = [dist.P2POp(op, end, group=group, group_peer=peer) for op, end in ((dist.isend, x), (dist.irecv, other))]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        return other

    def from_last(self, x: Tensor) -> Tensor:
        """The last stage's `x` on every stage; those before it give a tensor of its shape and dtype to fill."""
        if self.pp.size > 1:
            x = x.contiguous()
            dist.broadcast(x, group=group_of(self.pp), group_src=self.pp.size - 1)
        return x
