"""A packed weight: one matrix or a stack of them under a packing law, and products with it."""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from l4spec.layers.common.modules import linear
from l4spec.runtime.quantize.bit_packing import pack, pack_nibbles, payload_layout, unpack, unpack_nibbles
from l4spec.runtime.quantize.codes import SCALE_DTYPES, Coded, decode, encode, group_shape
from l4spec.runtime.quantize.kernels import CUDA, Int4Kernel, int4_kernel, int8_product, kernel_group, takes_int8
from l4spec.spec.storage import ScaledLaw
from l4spec.units import ceil_div

_PRODUCT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_AT_ONCE = 1 << 22
"""Weights that are rounded together where matrices are small."""
Index = tuple[int, ...] | slice


class PackedWeight(nn.Module):
    """Weights [..., out, in], stored only as the buffers of a law.

    `weight_packed` is the canonical payload (`words`), or a kernel's own layout of it where torch has a product for the
    law, the sizes and the device; states are canonical on every device. `weight_scale` [..., groups of rows, groups of
    columns]; `weight_zero_point` [..., words] and `weight_matrix_scale` [...] where the law has them. No gradients
    reach the weights. `dtype` is that of activations, which `to` changes; the packed tensors keep theirs.
    """

    def __init__(self, law: ScaledLaw, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.law = law
        self.shape = shape
        self.dtype = dtype
        self.kernel: Int4Kernel | None = None
        stack, (rows, columns) = shape[:-2], shape[-2:]
        high, wide = group_shape(law, rows, columns)
        groups = (ceil_div(rows, high), ceil_div(columns, wide))
        width, payload_dtype = payload_layout(law, columns)
        made = partial(torch.empty, device=device)
        zero_points = matrix_scales = None
        if law.zero_point_bits:
            words = pack_nibbles(torch.zeros(prod(groups), dtype=torch.uint8), law.word_bits)
            zero_points = made(*stack, *words.shape, dtype=words.dtype)
        if law.matrix_scale_dtype:
            matrix_scales = made(stack, dtype=SCALE_DTYPES[law.matrix_scale_dtype])
        self.register_buffer("weight_packed", made(*stack, rows, width, dtype=payload_dtype))
        self.register_buffer("weight_scale", made(*stack, *groups, dtype=SCALE_DTYPES[law.scale_dtype]))
        self.register_buffer("weight_zero_point", zero_points)
        self.register_buffer("weight_matrix_scale", matrix_scales)
        self.weight_packed: Tensor
        self.weight_scale: Tensor
        self.weight_zero_point: Tensor | None
        self.weight_matrix_scale: Tensor | None

    @property
    def num_weights(self) -> int:
        """Number of packed weights."""
        return prod(self.shape)

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Round `weight` [..., out, in] to the law's codes, a few matrices at a time."""
        if weight.is_meta:
            return
        if len(self.shape) == 2:
            self.put(encode(self.law, weight.float()))
        else:
            step = max(1, _AT_ONCE // prod(self.shape[1:]))
            for start in range(0, self.shape[0], step):
                some = slice(start, start + step)
                self.put(encode(self.law, weight[some].float()), some)
        self.use_kernel()

    def put(self, coded: Coded, index: Index = ()) -> None:
        """Store codes and scales of one matrix, or of some of a stack, in a canonical payload."""
        assert self.kernel is None, "the payload is in a kernel's layout"
        self.weight_packed[index] = pack(self.law, coded.codes).to(self.weight_packed.device)
        self.weight_scale[index] = coded.scale.view(self.weight_scale[index].shape).to(self.weight_scale.device)
        if self.weight_zero_point is not None and coded.zero_point is not None:
            self.weight_zero_point[index] = pack_nibbles(coded.zero_point.flatten(-2), self.law.word_bits)
        if self.weight_matrix_scale is not None and coded.matrix_scale is not None:
            self.weight_matrix_scale[index] = coded.matrix_scale

    def reset(self) -> None:
        """An empty canonical payload, to be filled matrix by matrix."""
        if self.kernel is not None:
            width, dtype = payload_layout(self.law, self.shape[-1])
            shape = (*self.shape[:-1], width)
            self.weight_packed = torch.empty(shape, dtype=dtype, device=self.weight_packed.device)
            self.kernel = None

    def linear(self, x: Tensor, index: int | None = None, bias: Tensor | None = None) -> Tensor:
        """x W^T (+ b), [..., in] to [..., out], with the matrix at `index` of a stack; unpacked where it has to be."""
        product = self._product(x, index)
        if product is None:
            return linear(x, self.dense(index, x.dtype), bias)
        result = product(x.reshape(-1, x.shape[-1]).contiguous()).view(*x.shape[:-1], -1)
        return result if bias is None else result + bias

    def dense(self, index: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The weights that are stored, [..., out, in] or the matrix at `index` of a stack, in `dtype`."""
        indices = self._indices() if index is None else iter([(index,)])
        matrices = [decode(self.law, self.coded(at), dtype or self.dtype) for at in indices]
        return matrices[0] if index is not None or len(self.shape) == 2 else torch.stack(matrices)

    def coded(self, index: tuple[int, ...] = ()) -> Coded:
        """Codes and scales of one matrix."""
        rows, columns = self.shape[-2:]
        payload, scale, zero_point = self.weight_packed[index], self.weight_scale[index], None
        codes = self.kernel.unpack(payload, rows, columns) if self.kernel else unpack(self.law, payload, columns)
        if self.weight_zero_point is not None:
            zero_point = unpack_nibbles(self.weight_zero_point[index], scale.numel()).view(scale.shape)
        matrix_scale = None if self.weight_matrix_scale is None else self.weight_matrix_scale[index]
        return Coded(codes, scale, zero_point, matrix_scale)

    def canonical(self) -> Tensor:
        """The payload as it is written to states and checkpoints."""
        if self.kernel is None:
            return self.weight_packed
        payloads = [pack(self.law, self.coded(index).codes) for index in self._indices()]
        return payloads[0] if len(self.shape) == 2 else torch.stack(payloads)

    def _indices(self) -> Iterator[tuple[int, ...]]:
        return iter([(index,) for index in range(self.shape[0])] if len(self.shape) == 3 else [()])

    def use_kernel(self) -> None:
        """Replace the canonical payload by a kernel's layout where one runs here."""
        rows, columns = self.shape[-2:]
        kernel = int4_kernel(self.law, rows, columns, self.weight_packed.device)
        if kernel is None or self.kernel is not None:
            return
        packed: Tensor | None = None
        for index in self._indices():
            matrix = kernel.pack(unpack(self.law, self.weight_packed[index], columns))
            packed = matrix.new_empty(*self.shape[:-2], *matrix.shape) if packed is None else packed
            packed[index] = matrix
        assert packed is not None and packed.nbytes == self.weight_packed.nbytes
        self.weight_packed, self.kernel = packed, kernel

    def _product(self, x: Tensor, index: int | None) -> Callable[[Tensor], Tensor] | None:
        """Torch's product with the packed matrix; None if there is none, for gradients and for no rows at all."""
        if x.dtype not in _PRODUCT_DTYPES or not x.numel() or (x.requires_grad and torch.is_grad_enabled()):
            return None
        at, columns = () if index is None else (index,), self.shape[-1]
        if self.kernel is not None:
            if self.kernel is CUDA and x.dtype != torch.bfloat16:
                return None
            kernel, size = self.kernel, kernel_group(self.law, columns)
            assert size is not None
            return lambda rows: kernel.product(rows, self.weight_packed[at], size, self._steps(at, size, x.dtype))
        if takes_int8(self.law, columns, x.device) and self.weight_packed.shape[-1] == columns:
            scale = self.weight_scale[at].flatten().to(x.dtype)
            return lambda rows: int8_product(rows, self.weight_packed[at], scale)
        return None

    def _steps(self, at: tuple[int, ...], size: int, dtype: torch.dtype) -> Tensor:
        """Per group of the kernel its scale and the value of code 8 [groups, rows, 2], made for each product.

        Kept, they would take twice the bytes of the scales that the law stores.
        """
        rows, columns = self.shape[-2:]
        scale = self.weight_scale[at]
        if scale.shape[-1] * size != columns:
            scale = scale.expand(rows, columns // size)
        steps = torch.zeros(columns // size, rows, 2, dtype=dtype, device=scale.device)
        steps[..., 0] = scale.t()
        if self.weight_zero_point is not None:
            zero_point = unpack_nibbles(self.weight_zero_point[at], scale.numel()).view(scale.shape)
            steps[..., 1] = ((8.0 - zero_point) * scale.float()).t()
        return steps

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight_packed"] = self.canonical()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}weight_packed" in state_dict:
            self.reset()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.use_kernel()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedWeight":
        """Move as `fn` moves, but keep number formats: casting packed bytes would lose them."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.weight_packed.device))
        was_meta = self.weight_packed.is_meta
        if probe.device.type != self.weight_packed.device.type:
            self.weight_packed, self.kernel = self.canonical(), None
        self.dtype = probe.dtype if probe.dtype.is_floating_point else self.dtype
        for name, buffer in self._buffers.items():
            if buffer is not None:
                is_filled = not buffer.is_meta or probe.is_meta
                moved = buffer.to(probe.device) if is_filled else torch.empty_like(buffer, device=probe.device)
                self._buffers[name] = moved
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(fn(parameter.data), requires_grad=parameter.requires_grad)
        if self.kernel is None and not was_meta:
            self.use_kernel()
        return self


class QuantizedLinear(PackedWeight):
    """A linear layer whose weight is packed; its bias is not."""

    def __init__(self, law: ScaledLaw, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(law, (layer.out_features, layer.in_features), dtype, layer.weight.device)
        self.bias = layer.bias
        self.fill(layer.weight.detach())

    @property
    def weight(self) -> Tensor:
        """The stored weight unpacked, [out, in]: for layers that use it in another way than by a product."""
        return self.dense()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.linear(x, None, self.bias)


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed weights of a model by the names under which the kinds declare them."""
    return {
        f"{name}.weight" if isinstance(module, QuantizedLinear) else name: module
        for name, module in model.named_modules()
        if isinstance(module, PackedWeight)
    }
