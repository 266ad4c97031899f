"""Bytes of a tensor under a packing law: exact integers, scales, zero points and rounding included."""

from math import prod
from typing import NamedTuple

from l4spec.spec.storage import BYTES_PER_ELEMENT, BlockLaw, Law, PlainLaw, ScaledLaw
from l4spec.units import ceil_div


class StoredSize(NamedTuple):
    """Bytes of a stored tensor. Blocks (GGUF) hold their scales inside and count as payload."""

    payload_bytes: int
    scale_bytes: int = 0
    zero_point_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything that is stored for the tensor."""
        return self.payload_bytes + self.scale_bytes + self.zero_point_bytes

    def __add__(self, other: "StoredSize") -> "StoredSize":  # type: ignore[override]  # tuple has a method of this name
        return StoredSize(
            self.payload_bytes + other.payload_bytes,
            self.scale_bytes + other.scale_bytes,
            self.zero_point_bytes + other.zero_point_bytes,
        )


class Refusal(NamedTuple):
    """Reason why a law cannot store a tensor of this shape."""

    reason: str


class _Stack(NamedTuple):
    """A tensor as `num_matrices` matrices [num_rows, row_length] with the contracted dim along a row."""

    num_matrices: int
    num_rows: int
    row_length: int


def stored_bytes(
    law: PlainLaw | ScaledLaw | BlockLaw, shape: tuple[int, ...], input_axis: int | None = None
) -> StoredSize | Refusal:
    """Bytes of a tensor of `shape` under `law`, or why it cannot be stored.

    The last two dims are a matrix and dims before them, such as experts, stack matrices: each is packed and scaled on
    its own. `input_axis` is the contracted dim, the last one if None; scales and blocks run along it. A tensor of one
    dim is one row. Nothing is added for names, headers and alignment of a file.
    """
    size = _size(law, _stack(shape, input_axis))
    if isinstance(size, Refusal):
        return Refusal(f"{size.reason} (shape {'x'.join(map(str, shape))})")
    return size


def _stack(shape: tuple[int, ...], input_axis: int | None) -> _Stack:
    axis = len(shape) - 1 if input_axis is None else input_axis % len(shape)
    assert shape, "a tensor has at least one dim"
    assert axis >= len(shape) - 2, f"the contracted dim of {shape} is among the last two, not {axis}"
    matrix = shape[-2:] if len(shape) > 1 else (1, *shape)
    along = axis - max(len(shape) - 2, 0) if len(shape) > 1 else 1
    return _Stack(prod(shape[:-2]), matrix[1 - along], matrix[along])


def cut_block(law: Law, whole: tuple[int, ...], shard: tuple[int, ...]) -> Refusal | None:
    """The refusal of a shard that begins or ends inside a block of scales; None if no block is cut.

    The engines' rule for blocks of scales: vLLM (model_executor/layers/quantization/utils/fp8_utils.py,
    `validate_fp8_block_shape`) and SGLang refuse a partition that is no multiple of the block.
    """
    if not isinstance(law, ScaledLaw) or not isinstance(law.group, tuple):
        return None
    for size, part, block in zip(whole[-2:], shard[-2:], law.group, strict=False):
        if part != size and part % block:
            return Refusal(f"a shard of {part} out of {size} cuts blocks of {block} that share a scale")
    return None


def _size(law: PlainLaw | ScaledLaw | BlockLaw, stack: _Stack) -> StoredSize | Refusal:
    if isinstance(law, ScaledLaw):
        return _scaled(law, stack)
    if isinstance(law, BlockLaw):
        return _blocks(law, stack)
    elements = stack.num_matrices * stack.num_rows * stack.row_length
    return StoredSize(elements * BYTES_PER_ELEMENT[law.dtype])


def _scaled(law: ScaledLaw, stack: _Stack) -> StoredSize | Refusal:
    groups = _groups_per_matrix(law, stack)
    if isinstance(groups, Refusal):
        return groups
    row = _words(stack.row_length * law.bits, law.word_bits)  # rows are packed on their own
    scales = groups * BYTES_PER_ELEMENT[law.scale_dtype]  # one scale a group
    if law.matrix_scale_dtype is not None:
        scales += BYTES_PER_ELEMENT[law.matrix_scale_dtype]  # one more a matrix
    zero_points = _words(groups * law.zero_point_bits, law.word_bits)  # packed like weights, per matrix
    return StoredSize(
        stack.num_matrices * stack.num_rows * row, stack.num_matrices * scales, stack.num_matrices * zero_points
    )


def _groups_per_matrix(law: ScaledLaw, stack: _Stack) -> int | Refusal:
    if law.group == "tensor":
        return 1
    if law.group == "row":
        return stack.num_rows
    if isinstance(law.group, tuple):
        high, wide = law.group
        return ceil_div(stack.num_rows, high) * ceil_div(stack.row_length, wide)  # blocks at the edges count in full
    if stack.row_length % law.group:
        return Refusal(f"groups of {law.group} do not divide the {stack.row_length} weights of the input dim")
    return stack.num_rows * (stack.row_length // law.group)


def _blocks(law: BlockLaw, stack: _Stack) -> StoredSize | Refusal:
    if stack.row_length % law.weights:
        return _size(law.fallback, stack)
    return StoredSize(stack.num_matrices * stack.num_rows * (stack.row_length // law.weights) * law.bytes)


def _words(bits: int, word_bits: int) -> int:
    """Bytes of the whole words that hold `bits`."""
    return ceil_div(bits, word_bits) * word_bits // 8
