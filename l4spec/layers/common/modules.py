"""Base class of layers' torch modules, the context of a forward pass, and modules that several kinds use."""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from l4spec.layers.common.cache import LayerCache
from l4spec.layers.common.gate_clamp import GateClamp
from l4spec.layers.common.ledger import MOST_FEW_ROWS
from l4spec.layers.common.split import RunsSplit


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Positions of the tokens of one forward pass: `num_rows` rows of `num_tokens` columns.

    Rows are aligned: column t of a row is its t-th new token, whatever padding the caller had. `start` is the number of
    earlier tokens in the cache (an upper bound when rows differ). `positions` is [tokens] when all rows are alike, else
    [rows, tokens]. When rows differ, `lengths` [rows] counts the earlier tokens of each (None: none, or all `start`)
    and `num_new` [rows] its real columns. `sequence_ids` [rows, tokens] separates packed sequences. `places`
    [tokens, 2] of an image's `grid` of patches are x + 1, y + 1 (0 for a class token), of text with images
    [rows, tokens, 3] time, row, column. A divided sequence has the `runs` of each rank; this one's begins at `start`.
    """

    num_rows: int
    num_tokens: int
    start: int
    positions: Tensor
    lengths: Tensor | None = None
    num_new: Tensor | None = None
    sequence_ids: Tensor | None = None
    places: Tensor | None = None
    runs: tuple[range, ...] = ()
    grid: tuple[int, int] = (0, 0)

    @property
    def is_uniform(self) -> bool:
        """True if plain slices suffice: all rows have the same number of earlier tokens and no packed sequences."""
        return self.lengths is None and self.sequence_ids is None

    def valid(self) -> Tensor | None:
        """Mask of the columns that are real tokens, bool [rows, tokens]; None: all."""
        if self.num_new is None:
            return None
        return torch.arange(self.num_tokens, device=self.num_new.device) < self.num_new[:, None]


@dataclass(slots=True)
class Context:
    """State of one forward pass that every layer gets besides its inputs.

    `caches` maps node ids to caches, `class_token` is the place of a vision tower's class token, `image_mask` [rows,
    tokens] marks the text tokens that image vectors replace. `memo` has tensors that layers share (rotations, masks).
    Mixtures pass to `record` their node's id, the choices each expert got [experts] and, in training, those dropped,
    unless the pass `is_recomputed` after a checkpoint. `loss_scale` is the share of this pass in its step. With
    `recomputes_core` attention saves its inputs and result alone. With `split` each tp rank has some of the tokens.
    `token_ids` [rows, tokens] are those of the layout.
    """

    layout: TokenLayout
    caches: dict[str, LayerCache] | None = None
    image_mask: Tensor | None = None
    class_token: Literal["first", "last", "none"] = "none"
    memo: dict[str, Tensor] = field(default_factory=dict)
    record: Callable[[str, Tensor, Tensor], None] | None = None
    loss_scale: float = 1.0
    is_recomputed: bool = False
    recomputes_core: bool = False
    split: RunsSplit | None = None
    token_ids: Tensor | None = None

    def cache_of(self, node_id: str) -> LayerCache | None:
        """The cache of a layer; None when nothing is cached."""
        return None if self.caches is None else self.caches.get(node_id)

    def once(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The result of `make`, computed once per forward pass and shared under `key`."""
        value = self.memo.get(key)
        if value is None:
            value = self.memo[key] = make()
        return value


class LayerModule(nn.Module):
    """Base of every layer's module: built from `(spec, width)`, holding exactly the declared parameters.

    `forward(*inputs, context=…)` takes the outputs of the nodes that feed it, in the order of their ports. `node_id` is
    the node's id in the graph, set when the model is put together.
    """

    node_id: str = ""
    summed_at: str = ""
    """The submodule whose outputs tensor-parallel ranks add up, where it is not the layer's own output."""
    joins_itself: bool = False
    """True if the module itself combines the ranks' partial results, so that no sum follows it."""

    def tie(self, name: str, owner: nn.Module) -> None:
        """Use the weight of another module for the declared parameter `name`; kinds that can be tied override this."""
        raise TypeError(f"{type(self).__name__} has no parameter that can be tied, found {name!r}")


def empty(*shape: int) -> nn.Parameter:
    """A parameter that is not filled yet: `l4spec.runtime.initialize` or a checkpoint fills it."""
    return nn.Parameter(torch.empty(*shape))


class Products(Protocol):
    """Products with a weight in training that replace the plain ones (`l4spec.training.fp8`)."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., in] by a weight [out, in] to [..., out]."""

    def grouped(self, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        """As `l4spec.layers.common.grouped_linear`."""


class Linear(nn.Linear):
    """`nn.Linear` that leaves filling its weights to whoever builds the model."""

    bias_share: float = 1.0
    """Factor on the bias: of tensor-parallel ranks whose outputs are added up, one adds it."""
    products: Products | None = None
    """Products in training; None: the plain ones."""

    def reset_parameters(self) -> None:
        """Nothing: see `l4spec.runtime.initialize`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        bias: Tensor | None = self.bias  # the stub knows it as a tensor
        if bias is not None and self.bias_share != 1.0:
            bias = bias * self.bias_share
        if self.products is not None and self.training:
            return add_bias(self.products.linear(x, self.weight), bias)
        return linear(x, self.weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T (+ b), [..., in] to [..., out].

    fp32 on the CPU goes by faster products than torch's own choice (docs/speed.md): oneDNN's, and for few rows, which
    are a read of W, its halves as a batch of two matrices, which MKL streams up to three times as fast as one matrix.
    """
    if _is_compiled_read(x, weight):
        return _as_read(x, weight, bias)
    if not _is_plain_fp32(x, weight):
        return nn.functional.linear(x, weight, bias)
    if _are_halved(x, weight):
        return _by_halves(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def expert_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`linear` of the rows of one expert, whose number is another one each time, [rows, in] to [rows, out].

    Not by oneDNN, which compiles and keeps a kernel of some 200 KB for each number of rows.
    """
    if _is_plain_fp32(x, weight) and _are_halved(x, weight):
        return _by_halves(x, weight, None)
    return nn.functional.linear(x, weight)


def _is_compiled_read(x: Tensor, weight: Tensor) -> bool:
    """True if the product of one row, compiled without gradients on the CPU, should be a loop of its own."""
    is_traced = torch.compiler.is_compiling() and not torch.is_grad_enabled()
    return is_traced and weight.is_cpu and x.numel() == x.shape[-1]


def _as_read(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One row's product as products and sums, which a compiler fuses with the operations around it."""
    result = read_rows(x.reshape(-1), weight).view(*x.shape[:-1], -1)
    return result if bias is None else result + bias


def read_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Scalar products of `x` [..., in] with the rows of `weight` [..., out, in], in at least fp32: [..., out]."""
    return (wide(weight) * wide(x)[..., None, :]).sum(-1).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """In fp32, or in fp64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def _are_halved(x: Tensor, weight: Tensor) -> bool:
    return x.numel() // x.shape[-1] <= MOST_FEW_ROWS and weight.shape[0] % 2 == 0


def _by_halves(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = x.shape
    num_rows = x.numel() // shape[-1]
    halves = weight.view(2, -1, shape[-1])
    if num_rows == 1 and x.stride(-1) == 1:
        column = x.as_strided((2, shape[-1], 1), (0, 1, shape[-1]))  # MKL is slow with other strides
        result = torch.bmm(halves, column).view(*shape[:-1], weight.shape[0])
    else:
        columns = x.reshape(num_rows, -1).t().expand(2, -1, -1)
        result = torch.bmm(halves, columns).flatten(0, 1).t().contiguous().view(*shape[:-1], -1)
    return result if bias is None else result + bias


def _is_plain_fp32(x: Tensor, weight: Tensor) -> bool:
    """True if the product is of plain fp32 weights on the CPU, outside autograd and the compiler."""
    if x.dtype != torch.float32 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    is_plain = type(weight) in _PLAIN and weight.is_cpu and weight.is_contiguous() and weight.numel() > 0
    return is_plain and weight.dtype == x.dtype and _HAS_ONEDNN


_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stub lacks it


def _onednn_flops(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """From shapes, for every `FlopCounterMode`, which would count nothing."""
    return 2 * math.prod(x) * weight[0]


if _HAS_ONEDNN:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_onednn_flops)
_PLAIN = {Tensor, nn.Parameter}


class _WithoutOneDNN:
    """While a thread is inside, torch multiplies without oneDNN, whose product of one row in bf16 takes twice as long.

    The switch is one for the process, so threads count. It chooses between kernels that round differently and is no
    part of the mathematics: a product of another thread that runs meanwhile is as right as before.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.was_on = threading.Lock(), 0, True

    def __enter__(self) -> None:
        switch: Any = torch.backends.mkldnn
        with self.lock:
            if not self.inside:
                self.was_on, switch.enabled = switch.enabled, False
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        switch: Any = torch.backends.mkldnn
        with self.lock:
            self.inside -= 1
            if not self.inside:
                switch.enabled = self.was_on


_WITHOUT_ONEDNN = _WithoutOneDNN()


def fast_for(num_rows: int, weight: Tensor) -> AbstractContextManager[None]:
    """Run products of `num_rows` rows and weights as `weight` by the fastest of torch's kernels (docs/speed.md)."""
    is_vector = num_rows == 1 and weight.dtype == torch.bfloat16 and weight.is_cpu
    return _WITHOUT_ONEDNN if is_vector and not torch.compiler.is_compiling() else nullcontext()


class Norm(nn.Module):
    """RMSNorm x / sqrt(mean(x^2) + eps) * weight, normalised in fp32, as a part of other layers."""

    def __init__(self, width: int, eps: float, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.weight = empty(width)
        self.eps = eps
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """The normed tensor, in the dtype of `x`; the last dimension is the one that is normed."""
        return rms_norm(x, self.weight, self.eps, unit_offset=self.unit_offset)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, *, unit_offset: bool = False) -> Tensor:
    """RMS norm of the last dimension in fp32.

    Rounded to the dtype of `x` before the weight, as Llama does; with `unit_offset` the factor is 1 + weight, applied
    in fp32 before rounding, as Gemma does.
    """
    precise = wide(x)
    if unit_offset:
        assert weight is not None
        return nn.functional.rms_norm(precise, x.shape[-1:], 1 + weight.to(precise.dtype), eps).to(x.dtype)
    if _is_one_vector(x):
        flat = precise.view(-1)  # one pass over it instead of four small operations
        factor = 1 / math.sqrt(float(torch.dot(flat, flat)) / flat.shape[0] + eps)
        normed = precise * factor if precise is x else (precise * factor).to(x.dtype)
        return normed if weight is None else normed.mul_(weight)
    if x.dtype == precise.dtype:
        return nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    normed = nn.functional.rms_norm(precise, x.shape[-1:], None, eps).to(x.dtype)
    return normed if weight is None else normed * weight


def _is_one_vector(x: Tensor) -> bool:
    """True if `x` is the single row of a decode step on the CPU, where starting operations takes most of the time."""
    is_alone = x.numel() == x.shape[-1] and x.device.type == "cpu" and x.is_contiguous()
    return is_alone and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _squared(x: Tensor) -> Tensor:
    return x.square() if torch.is_grad_enabled() else x.square_()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
    "relu2": lambda x: _squared(nn.functional.relu(x)),
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The element-wise function of this name; KeyError for an unknown one."""
    return _ACTIVATIONS[name]


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """`x` with a bias, in place where no autograd watches."""
    if bias is None:
        return x
    return x + bias if torch.is_grad_enabled() else x.add_(bias)


@dataclass(frozen=True, slots=True)
class GatedProduct:
    """act(gate) * up, with clamps. Without autograd results are overwritten: a third less memory traffic."""

    act: str
    clamp: GateClamp | None = None

    def activated(self, gate: Tensor) -> Tensor:
        """act(gate), or g sigmoid(alpha g) of the clamped gate."""
        if self.clamp is None:
            return activation(self.act)(gate)
        if torch.is_grad_enabled():
            gate = gate.clamp(max=self.clamp.limit)
            return gate * torch.sigmoid(self.clamp.alpha * gate)
        gate = gate.clamp_(max=self.clamp.limit)
        return gate.mul_((self.clamp.alpha * gate).sigmoid_())

    def times(self, activated: Tensor, up: Tensor) -> Tensor:
        """The activated gate times `up`, or times its clamped values with their offset."""
        if torch.is_grad_enabled():
            if self.clamp is not None:
                up = up.clamp(-self.clamp.limit, self.clamp.limit) + self.clamp.up_offset
            return activated * up
        if self.clamp is not None:
            up = up.clamp_(-self.clamp.limit, self.clamp.limit).add_(self.clamp.up_offset)
        return activated.mul_(up)


class GatedFFN(LayerModule):
    """down(act(gate(x)) * up(x)): SwiGLU, GeGLU and the shared expert of a mixture."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, act: str, *, bias: bool = False, clamp: GateClamp | None = None
    ) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)
        self.gated = GatedProduct(act, clamp)

    def forward(self, x: Tensor, *, context: Context | None = None) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        gate = self.gated.activated(self.gate_proj(x))
        result: Tensor = self.down_proj(self.gated.times(gate, self.up_proj(x)))
        return result


class PlainFFN(LayerModule):
    """down(act(up(x))): two projections without a gate."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: str, *, bias: bool = False) -> None:
        super().__init__()
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)
        self.act = activation(act)

    def forward(self, x: Tensor, *, context: Context | None = None) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        result: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return result


def group_last(x: Tensor, *shape: int) -> Tensor:
    """The last dimension as several: [..., heads * head_dim] to [..., heads, head_dim] by (-1, head_dim)."""
    return x.reshape(*x.shape[:-1], *shape)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap), which keeps values within (-cap, cap); unchanged without a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)
