"""Torch's products with packed weights against unpacking and multiplying, and where they are used."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from l4spec.quantization.scheme import scheme_named
from l4spec.runtime.measure.flops import FORMULAS
from l4spec.runtime.quantize.kernels import CPU, CUDA, int4_kernel
from l4spec.runtime.quantize.weight import PackedWeight
from l4spec.spec.storage import ScaledLaw
from tests.runtime.quantize.laws import noise

HOST = torch.device("cpu")


def law_of(scheme: str, **others: object) -> ScaledLaw:
    """The packing law of a shipped scheme, changed."""
    (law,) = {rule.law for rule in scheme_named(scheme).rules}
    assert isinstance(law, ScaledLaw)
    return law.model_copy(update=others)


def packed(law: ScaledLaw, *shape: int, dtype: torch.dtype = torch.bfloat16) -> PackedWeight:
    """Noise packed by a law."""
    weight = PackedWeight(law, shape, dtype, HOST)
    weight.fill(noise(*shape, spread_of_rows=0.3))
    return weight


def rounding_bound(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """How far x W^T may be off, number by number: products, weights, scales and the result are rounded once each.

    Each rounding is half a unit in the last place, and sums are formed in fp32: 4 roundings of the sum of magnitudes.
    """
    return 4 * torch.finfo(dtype).eps / 2 * (x.double().abs() @ weight.double().abs().t()) + 1e-12


def named(value: object) -> str:
    """An id without addresses, which differ from process to process."""
    if isinstance(value, ScaledLaw):
        return f"{value.bits}bit-{value.group}-{value.scale_dtype}-{value.zero_point_bits}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(getattr(value, "name", value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize(
    ("law", "shape", "kernel"),
    [
        (law_of("w4a16"), (48, 256), CPU),
        (law_of("w4a16", group=32), (16, 96), CPU),
        (law_of("awq", scale_dtype="bf16"), (80, 128), CPU),
        (law_of("int4-mixed"), (64, 160), CPU),
        (law_of("int4-mixed-g128"), (32, 128), CPU),
        (law_of("w4a16", group=16), (48, 256), None),
        (law_of("w4a16"), (40, 256), None),
        (law_of("int8"), (7, 64), None),
        (law_of("int8"), (7, 28), None),
        (law_of("fp8"), (7, 30), None),
        (law_of("nvfp4"), (6, 32), None),
    ],
    ids=named,
)
def test_a_product_is_that_of_the_unpacked_weights(
    law: ScaledLaw, shape: tuple[int, int], kernel: object, rows: int, dtype: torch.dtype
) -> None:
    weight = packed(law, *shape, dtype=dtype)
    assert weight.kernel is kernel
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
    dense = weight.dense(dtype=torch.float64)
    error = (weight.linear(x).double() - x.double() @ dense.t()).abs()
    assert (error <= rounding_bound(x, dense, dtype)).all()


@pytest.mark.parametrize("shape", [(16, 32), (48, 64), (144, 256), (1000 * 16, 32)])
def test_a_kernels_layout_is_read_back(shape: tuple[int, int]) -> None:
    codes = torch.randint(0, 16, shape, dtype=torch.uint8)
    assert torch.equal(CPU.unpack(CPU.pack(codes), *shape), codes)


def test_a_kernels_layout_replaces_the_payload_and_never_enters_a_state() -> None:
    weight = packed(law_of("w4a16"), 2, 32, 128)
    assert weight.kernel is CPU
    assert len(list(weight.buffers())) == 2
    state = weight.state_dict()
    assert (state["weight_packed"].dtype, state["weight_packed"].shape) == (torch.int32, (2, 32, 16))
    other = PackedWeight(weight.law, weight.shape, weight.dtype, HOST)
    other.load_state_dict(state)
    assert other.kernel is CPU
    assert torch.equal(other.weight_packed, weight.weight_packed)


def test_cuda_packs_to_as_many_bytes_where_it_takes_the_shape() -> None:
    law, cuda = law_of("w4a16"), torch.device("cuda")
    assert int4_kernel(law, 40, 256, cuda) is CUDA
    assert int4_kernel(law, 36, 256, cuda) is None
    assert int4_kernel(law.model_copy(update={"group": 32}), 40, 96, cuda) is None
    assert CUDA.pack(torch.empty(40, 256, dtype=torch.uint8, device="meta")).nbytes == 40 * 128


@pytest.mark.parametrize("law", [law_of("w4a16"), law_of("int8"), law_of("fp8")], ids=str)
def test_packed_products_count_their_flops(law: ScaledLaw) -> None:
    weight = packed(law, 32, 128)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counted:
        weight.linear(torch.randn(2, 3, 128, dtype=torch.bfloat16))
    assert counted.get_total_flops() == 2 * 6 * 128 * 32


def test_a_gradient_reaches_the_input_and_no_row_gives_no_row() -> None:
    weight = packed(law_of("w4a16"), 32, 128, dtype=torch.float32)
    x = torch.randn(3, 128, requires_grad=True)
    weight.linear(x).sum().backward()  # type: ignore[no-untyped-call]  # torch's stub lacks it
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.dense().sum(dim=0).expand(3, -1), atol=1e-4)
    assert weight.linear(torch.empty(0, 128)).shape == (0, 32)


def test_casting_and_moving_a_model_leaves_packed_bytes_alone() -> None:
    weight = packed(law_of("fp8"), 8, 32)
    before = weight.weight_packed.clone()
    weight.to(torch.float32).half()
    assert weight.weight_packed.dtype == torch.float8_e4m3fn
    assert torch.equal(weight.weight_packed.view(torch.uint8), before.view(torch.uint8))
    assert weight.dense().dtype == torch.float16
