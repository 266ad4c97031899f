"""Packing laws carried out: every weight within half a step, every byte as the planner counts it."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.quantization.packing import StoredSize, stored_bytes
from l4spec.quantization.scheme import scheme_named
from l4spec.runtime.quantize.bit_packing import pack, unpack
from l4spec.runtime.quantize.codes import SCALE_DTYPES, decode, encode, rounded_up
from l4spec.runtime.quantize.weight import PackedWeight
from l4spec.spec.storage import ScaledLaw
from tests.runtime.quantize.laws import RUNNABLE, largest_errors, noise, runnable_laws

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9).map(lambda n: 4 * n))
CPU = torch.device("cpu")


def laws_of(name: str) -> list[ScaledLaw]:
    """The packing laws of a shipped scheme."""
    return [rule.law for rule in scheme_named(name).rules if isinstance(rule.law, ScaledLaw)]


@pytest.mark.parametrize("law", list(dict.fromkeys(law for name in RUNNABLE for law in laws_of(name))), ids=str)
def test_every_weight_is_within_half_a_step_of_what_is_stored(law: ScaledLaw) -> None:
    weight = noise(2, 40, 256)
    coded = encode(law, weight)
    assert ((decode(law, coded) - weight).abs() <= largest_errors(law, coded, weight)).all()


@settings(max_examples=60)
@given(runnable_laws, SHAPES, st.integers(0, 99))
def test_any_law_rounds_to_within_half_a_step_and_packs_without_loss(
    law: ScaledLaw, shape: tuple[int, int, int], seed: int
) -> None:
    weight = noise(*shape, seed=seed, spread_of_rows=0.3)
    coded = encode(law, weight)
    if law.scale_dtype != "fp8" or law.matrix_scale_dtype:  # an 8-bit scale alone ends at 448
        assert ((decode(law, coded) - weight).abs() <= largest_errors(law, coded, weight)).all()
    assert torch.equal(unpack(law, pack(law, coded.codes), shape[-1]), coded.codes)


@settings(max_examples=60)
@given(runnable_laws, SHAPES, st.booleans())
def test_a_packed_weight_holds_as_many_bytes_as_the_planner_counts(
    law: ScaledLaw, shape: tuple[int, int, int], stacked: bool
) -> None:
    packed_shape = shape if stacked else shape[1:]
    packed = PackedWeight(law, packed_shape, torch.bfloat16, CPU)
    packed.fill(noise(*packed_shape))
    planned = stored_bytes(law, packed_shape)
    assert isinstance(planned, StoredSize)
    assert sum(buffer.nbytes for buffer in packed.buffers()) == planned.total_bytes
    assert packed.weight_packed.nbytes == planned.payload_bytes


@pytest.mark.parametrize("dtype", SCALE_DTYPES)
def test_a_scale_is_the_least_of_its_format_that_is_not_too_small(dtype: str) -> None:
    exact = torch.linspace(-10, 8.8, 500).exp2()
    rounded = rounded_up(exact, dtype).float()
    assert (rounded >= exact).all()
    below = {"fp32": 0.0, "bf16": 2**-7, "fp16": 2**-10, "fp8": 2**-3, "e8m0": 1.0}[dtype]
    assert (rounded <= exact * (1 + below) + (2**-9 if dtype == "fp8" else 2**-24)).all()


def test_a_group_of_zeros_is_stored_as_zeros() -> None:
    for law in laws_of("w4a16") + laws_of("fp8") + laws_of("nvfp4") + laws_of("awq"):
        assert not decode(law, encode(law, torch.zeros(3, 256))).any()


def test_words_are_those_of_compressed_tensors() -> None:
    (law,) = laws_of("w4a16")
    numbers = torch.randint(-8, 8, (5, 128), dtype=torch.int8)
    assert torch.equal(pack(law, (numbers + 8).to(torch.uint8)), pack_to_int32(numbers, 4))
