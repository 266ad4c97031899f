"""What is published to fit, or not to fit, on which machines.

Sources: Llama 4 model card (Scout Int4 on one H100, Maverick FP8 on one host of eight); vllm-project/vllm#16712 and
#16227 (what ran out of memory); vLLM blog 2025-04-05 and SGLang docs/basic_usage/llama4.md (contexts that were served,
so lower bounds of what fits).
"""

import pytest

from planners.plan import plan
from tests.planners.models import graph

FITS = [
    ("scout", "1xH100", "w4a16"),
    ("scout", "1xH100", "w4a16-ffn"),
    ("scout", "1xH100", "int4-mixed"),
    ("scout", "2xH100", "fp8"),
    ("scout", "4xH100", "bf16"),
    ("maverick", "8xH100", "fp8"),
    ("maverick", "8xH200", "bf16"),
    ("maverick", "2x8xH100", "bf16"),
]
FITS_NOT = [
    ("scout", "1xH100", "fp8"),
    ("scout", "1xH200", "bf16"),
    ("scout", "2xH100-NVL", "bf16"),
    ("scout", "2xH100", "bf16"),
    ("maverick", "8xH100", "bf16"),
    ("maverick", "4xH100", "fp8"),
    ("maverick", "2xH100", "w4a16"),
]


@pytest.mark.parametrize(("name", "gpus", "scheme"), FITS)
@pytest.mark.parametrize("engine", ["ideal", "vllm"])
def test_what_was_served_fits(name: str, gpus: str, scheme: str, engine: str) -> None:
    planned = plan(graph(name), gpus=gpus, quantization=scheme, engine=engine)
    assert planned.fits
    assert planned.memory_per_device.headroom_bytes is not None
    assert planned.memory_per_device.headroom_bytes >= 0


@pytest.mark.parametrize(("name", "gpus", "scheme"), FITS_NOT)
@pytest.mark.parametrize(
    "engine", ["ideal", "full", "vllm", "vllm-hybrid", "sglang-hybrid", "tensorrt-llm", "llama.cpp"]
)
def test_what_ran_out_of_memory_does_not_fit_even_for_one_token(name: str, gpus: str, scheme: str, engine: str) -> None:
    planned = plan(graph(name), gpus=gpus, quantization=scheme, engine=engine, context=1)
    assert planned.fits is False
    assert planned.max_context == planned.max_batch == 0
    assert not any(row.fits for row in planned.layouts)
    assert "does not fit" in planned.reasons[0]


@pytest.mark.parametrize(
    ("name", "scheme", "gpus", "engine", "served"),
    [
        ("scout", "bf16", "8xH100", "vllm", 1_000_000),
        ("scout", "bf16", "8xH200", "vllm", 3_600_000),
        ("maverick", "fp8", "8xH100", "vllm", 430_000),
        ("maverick", "fp8", "8xH200", "vllm", 1_000_000),
        ("scout", "bf16", "8xH100", "ideal", 5_000_000),
        ("scout", "bf16", "8xH200", "ideal", 10_000_000),
    ],
)
def test_contexts_that_were_served_fit(name: str, scheme: str, gpus: str, engine: str, served: int) -> None:
    planned = plan(graph(name), gpus=gpus, quantization=scheme, engine=engine, tp=8, context=served)
    assert planned.fits
    assert planned.max_context is not None
    assert planned.max_context >= served


def test_keeping_every_layer_whole_does_not_reach_scouts_longest_context_on_any_single_host() -> None:
    """sgl-project/sglang#5755: out of memory at the default context of 10,485,760 tokens."""
    for gpus in ("8xH100", "8xH200"):
        assert not plan(graph("scout"), gpus=gpus, engine="vllm", tp=8, context=10_485_760).fits


def test_ten_million_tokens_do_not_fit_on_one_h100_in_any_four_bit_scheme() -> None:
    for scheme in ("w4a16", "int4-mixed", "nvfp4", "gguf-q4_k_m"):
        assert not plan(graph("scout"), gpus="1xH100", quantization=scheme, context=10_000_000).fits


def test_llama_4_is_cut_into_one_two_four_or_eight_never_sixteen() -> None:
    """vllm-project/vllm#16227."""
    planned = plan(graph("maverick"), gpus="16xH100")
    assert {row.layout.tp for row in planned.layouts} == {1, 2, 4, 8}
    reasons = {row.reason for row in planned.illegal_layouts if row.layout.tp == 16}
    assert reasons == {"tp=16 does not divide 40 (query heads)"}
