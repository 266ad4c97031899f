"""Measured expert load: which experts the tokens of a run choose."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from l4spec.runtime.model import Model

Load = dict[str, list[int]]
"""By node id, how many tokens chose each expert."""


@contextmanager
def watching_experts(model: Model) -> Iterator[Load]:
    """Context manager that counts the choices of each expert of each mixture while the model runs."""
    routed = {node.id: node.declaration.routed for node in model.nodes}
    load = {name: [0] * experts.num_experts for name, experts in routed.items() if experts is not None}

    def add(node_id: str, counts: Tensor, dropped: Tensor) -> None:
        load[node_id] = [before + new for before, new in zip(load[node_id], counts.tolist(), strict=True)]

    before, model.record = model.record, add
    try:
        yield load
    finally:
        model.record = before
