"""Limits of the machine: the model's own matmuls run alone, and weights streamed through a matrix-vector product."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.speed_models import Routing
from l4spec.layers.common.modules import fast_for, linear, read_rows
from l4spec.runtime.model import Model


def plain_matmuls(model: Model, num_tokens: int, routing: Routing) -> tuple[Callable[[], None], int]:
    """All matmuls of a forward pass, one after another with nothing between them, and their FLOPs.

    Each weight with as many rows as the model gives it, every expert with those it got, by the fastest product that we
    know: the one of our layers.
    """
    work = list(_products(model, num_tokens, routing))
    inputs = {
        (rows, weight.shape[1]): torch.randn(rows, weight.shape[1], device=weight.device).to(weight.dtype)
        for rows, weight in work
    }
    flops = sum(2 * rows * weight.numel() for rows, weight in work)

    def run() -> None:
        for rows, weight in work:
            linear(inputs[rows, weight.shape[1]], weight)

    return run, flops


def _products(model: Model, num_tokens: int, routing: Routing) -> Iterator[tuple[int, Tensor]]:
    """(rows, weight [out, in]) in the order in which the layers come."""
    tensors = model.state_dict()
    for node in model.graph.nodes:
        for parameter in node.declaration.parameters:
            weight = tensors[f"{node.id}.{parameter.name}"]
            if parameter.role == "expert" and weight.dim() == 3:
                for expert, rows in enumerate(routing.rows[node.id]):
                    if rows:
                        yield rows, weight[expert]
            elif parameter.role in {"linear", "router", "head", "expert"}:
                yield num_tokens, weight


def streaming(model: Model, num_bytes: int) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """Ways of multiplying a matrix far larger than any cache by one vector, and the bytes each reads.

    `linear` is torch's own product, `ours` the one that our layers use, `compiled` that of compiled steps; the
    machine's limit is the fastest.
    """
    width, itemsize = 4096, model.dtype.itemsize
    matrix = torch.randn(num_bytes // width // itemsize, width, device=model.device).to(model.dtype)
    vector = torch.randn(1, width, device=model.device).to(model.dtype)

    def ours() -> Tensor:
        with fast_for(1, matrix):
            return linear(vector, matrix)

    ways: dict[str, Callable[[], Tensor]] = {
        "linear": partial(torch.nn.functional.linear, vector, matrix),
        "ours": ours,
        "compiled": partial(torch.compile(read_rows, dynamic=False), vector, matrix),
    }
    return ways, matrix.numel() * itemsize
