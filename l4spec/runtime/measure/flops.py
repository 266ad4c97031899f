"""Counting the floating-point operations that a model runs, layer by layer, forward and backward.

The formulas are torch's own (`torch.utils.flop_counter`: a multiply-add is 2, attention is counted dense), with those
added that torch lacks: flash attention on the CPU, the grouped matmuls of experts and products with packed weights
would count as nothing. (`l4spec.layers.common.modules` registers oneDNN's product.)
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from l4spec.layers.common import grouped_linear  # noqa: F401 - registers l4spec::grouped_linear
from l4spec.layers.common.modules import LayerModule

OUTSIDE = ""
"""Key of operations outside of any layer: a loss on the logits."""
Formula = Callable[..., int]
Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Scores again, then the gradients of weights, value, query and key."""
    num_pairs = prod(query[:3]) * key[2]
    return 2 * num_pairs * (3 * query[3] + 2 * value[3])


def _grouped_linear(x: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    """Every row goes through one matrix of the stack [experts, out, in]."""
    return 2 * prod(x) * weight[1]


def _grouped_mm(x: Shape, stack: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """Rows [rows, in] by a stack [experts, in, out], or [m, rows] by [rows, n] cut into products over the groups."""
    return 2 * prod(x) * stack[-1]


def _grouped_outer(grad: Shape, x: Shape, *args: Any, **kwargs: Any) -> int:
    """Every row adds an outer product to the gradient of its expert's matrix."""
    return 2 * prod(grad) * x[1]


def _packed_mm(x: Shape, packed: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """Rows [rows, in] by packed weights [out, in], in any memory layout."""
    return 2 * prod(x) * out_shape[-1]


FORMULAS: dict[Any, Formula] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten._grouped_mm: _grouped_mm,
    torch.ops.aten._weight_int4pack_mm: _packed_mm,
    torch.ops.aten._weight_int4pack_mm_for_cpu: _packed_mm,
    torch.ops.aten._weight_int8pack_mm: _packed_mm,
    torch.ops.l4spec.grouped_linear: _grouped_linear,
    torch.ops.l4spec.grouped_outer: _grouped_outer,
}
"""FLOP formulas from shapes, `FlopCounterMode(custom_mapping=…)`, of operators that torch does not count."""


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stub lacks it
    """Counts every operator that has a formula under the name that `where` gives."""

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stub lacks it
        self.where = where
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        if packet in FORMULAS:
            shapes = [arg.shape if isinstance(arg, Tensor) else arg for arg in args]
            self.counts[self.where()] += formula(
                *shapes, out_shape=result.shape if isinstance(result, Tensor) else None
            )
        else:
            self.counts[self.where()] += int(formula(*args, **kwargs, out_val=result))
        return result


class _Places:
    """The layer that runs now: the one whose forward is under way, or the one whose forward made the autograd node.

    Autograd nodes are numbered in the order in which the forward pass makes them, so that those of a layer are a range.
    """

    def __init__(self) -> None:
        self.running: list[tuple[str, int]] = []
        self.ranges: list[tuple[int, int, str]] = []

    def enter(self, node_id: str) -> None:
        self.running.append((node_id, _next_autograd_node()))

    def leave(self) -> None:
        node_id, first = self.running.pop()
        self.ranges.append((first, _next_autograd_node(), node_id))

    def now(self) -> str:
        if self.running:
            return self.running[-1][0]
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return OUTSIDE
        number = node._sequence_nr()
        return next((place for first, stop, place in self.ranges if first <= number < stop), OUTSIDE)


def _next_autograd_node() -> int:
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]  # torch's stub lacks it


@contextmanager
def counting_flops(model: nn.Module) -> Iterator[Counter[str]]:
    """A counter of FLOPs by node id, filled while the model runs in the block: forward, and backward where it is run.

    A multiply-add counts 2 and masked pairs inside a block of attention count, as in `torch.utils.flop_counter`; the
    sum equals `FlopCounterMode(custom_mapping=FORMULAS)`.
    """
    places = _Places()
    handles = []
    for module in model.modules():
        if isinstance(module, LayerModule) and module.node_id:
            handles.append(module.register_forward_pre_hook(lambda layer, *_: places.enter(str(layer.node_id))))
            handles.append(module.register_forward_hook(lambda *_: places.leave()))
    mode = _Mode(places.now)
    try:
        with mode:
            yield mode.counts
    finally:
        for handle in handles:
            handle.remove()
