"""Locates a non-finite number: the first layer that outputs one, or the first gradient that is one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l4spec.errors import UserError
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.training import local_of


class NotFiniteError(UserError):
    """Raised for a loss or a gradient that is not finite, naming step and layer."""


def where_not_finite(model: RankModel, input_ids: Tensor, inputs: Mapping[str, Tensor], loss: float) -> str:
    """One sentence with the layer; runs this rank's sequences forward once more, on all ranks."""
    layer = _first_layer(model, input_ids, inputs)
    if layer is not None:
        return f"the loss is {loss}: {layer} is the first layer whose output is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(local_of(parameter.grad)).all()):
            return f"the loss is {loss:.4g}, but the gradient of {name} is not finite"
    return f"the loss is {loss}, and no layer of this rank gives a number that is not finite"


@torch.no_grad()
def _first_layer(model: RankModel, input_ids: Tensor, inputs: Mapping[str, Any]) -> str | None:
    seen: list[str] = []

    def watch(node_id: str) -> Any:
        def look(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                seen.append(node_id)

        return look

    handles = [model.get_submodule(node.id).register_forward_hook(watch(node.id)) for node in model.nodes]
    try:
        model(input_ids, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen else None
