"""Packing laws that can be run, matrices to pack by them, and how far a weight may lie from what is stored of it."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from l4spec.quantization.scheme import SCHEMES, Quantization, scheme_named
from l4spec.quantization.tensors import fitted, scheme_of
from l4spec.runtime.quantize.codes import Coded, group_shape, spread
from l4spec.spec.storage import ScaledLaw

RUNNABLE = tuple(name for name in SCHEMES.names if not name.startswith(("gguf-", "mlx-", "bnb-")))


def fitted_scheme(graph: Any, name: str) -> Quantization:
    """The shipped scheme with groups that divide every width of the graph."""
    return fitted(graph, scheme_named(name))


def planned_bytes(graph: Any, table: Quantization) -> int:
    """The planner's bytes of all weights."""
    from planners.counts.weights import weigh

    return weigh(graph, scheme_of(table)).bytes


def _law(value: tuple[str, int], group: Any, scale: str, word: int, zero: bool, matrix: bool) -> ScaledLaw:
    fields: dict[str, Any] = {"values": value[0], "bits": value[1], "group": group, "scale_dtype": scale}
    fields |= {"word_bits": word, "zero_point_bits": 4 if zero and value == ("int", 4) else 0}
    matrix_scale = "fp32" if matrix and not zero else None
    return ScaledLaw.model_validate({"kind": "scaled", "matrix_scale_dtype": matrix_scale} | fields)


runnable_laws = st.builds(
    _law,
    st.sampled_from([("int", 4), ("int", 8), ("e4m3", 8), ("e2m1", 4)]),
    st.sampled_from(["tensor", "row", 1, 2, 4, (2, 3), (128, 128)]),
    st.sampled_from(["fp32", "bf16", "fp16", "fp8", "e8m0"]),
    st.sampled_from([8, 16, 32]),
    st.booleans(),
    st.booleans(),
)
"""Every law that a module here holds, with groups of 1, 2 or 4 weights so that widths of 4 fit."""


def noise(*shape: int, seed: int = 0, spread_of_rows: float = 1.0) -> Tensor:
    """Normal numbers, rows of very different size, one row of zeros and one large number."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    values = values * torch.exp(spread_of_rows * torch.randn((*shape[:-1], 1), generator=generator))
    values[..., 0, :] = 0
    values[..., -1, -1] *= 30
    return values


def largest_errors(law: ScaledLaw, coded: Coded, weight: Tensor) -> Tensor:
    """The most by which a weight may differ from what its code stands for, derived from the law.

    Whole numbers: half a step, the group's scale. Floats of m mantissa bits: half of the last bit, 2^-(m + 1) of the
    weight, and half of the least step near 0. All grown by 2^-20 for the fp32 arithmetic of the division by the scale.
    """
    shape = (int(weight.shape[-2]), int(weight.shape[-1]))
    matrix = 1.0 if coded.matrix_scale is None else coded.matrix_scale.float()[..., None, None]
    step = spread(coded.scale.float() * matrix, group_shape(law, *shape), shape)
    slack = 1 + 2**-20
    if law.values == "int":
        return step / 2 * slack + weight.abs() * 2**-20
    relative, least = {"e4m3": (2**-4, 2**-10), "e2m1": (2**-2, 2**-2)}[law.values]
    return torch.maximum(weight.abs() * relative, step * least) * slack
