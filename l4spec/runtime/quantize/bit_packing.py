"""Codes packed into words: the canonical payload, the same on every machine.

Words are filled from their lowest bits, rows begin at a word, and machines are little-endian, so that a word of any
size is its bytes: two 4-bit codes each, the earlier in the lower half. compressed-tensors packs in this order too.
"""

import torch
from torch import Tensor

from l4spec.spec.storage import ScaledLaw
from l4spec.units import ceil_div

_WORDS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def payload_layout(law: ScaledLaw, num_columns: int) -> tuple[int, torch.dtype]:
    """Number and type of the elements that store a row. Values of 8-bit laws are bytes: int8 or an 8-bit float."""
    words = ceil_div(num_columns * law.bits, law.word_bits)
    if law.bits == 8:
        dtype = torch.float8_e4m3fn if law.values == "e4m3" else torch.int8
        return words * law.word_bits // 8, dtype
    return words, _WORDS[law.word_bits]


def pack(law: ScaledLaw, codes: Tensor) -> Tensor:
    """uint8 codes [..., columns] as the payload [..., elements of a row]."""
    width, dtype = payload_layout(law, int(codes.shape[-1]))
    if law.bits == 8:
        padded = torch.nn.functional.pad(codes, (0, width - codes.shape[-1]), value=128 if dtype == torch.int8 else 0)
        return (padded ^ 128 if dtype == torch.int8 else padded).view(dtype)
    return pack_nibbles(codes, law.word_bits)


def unpack(law: ScaledLaw, payload: Tensor, num_columns: int) -> Tensor:
    """The inverse of `pack`."""
    if law.bits == 8:
        codes = payload.view(torch.uint8)[..., :num_columns]
        return codes ^ 128 if payload.dtype == torch.int8 else codes
    return unpack_nibbles(payload, num_columns)


def pack_nibbles(codes: Tensor, word_bits: int) -> Tensor:
    """4-bit codes in bytes [..., n] as words [..., ceil(n * 4 / word_bits)]."""
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (word_bits // 4)))
    return (codes[..., ::2] | codes[..., 1::2] << 4).contiguous().view(_WORDS[word_bits])


def unpack_nibbles(words: Tensor, count: int) -> Tensor:
    """The first `count` codes of words [..., n]."""
    pairs = words.contiguous().view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)[..., :count]
