"""Parameters, FLOPs and cache of Llama 4 against published numbers, to the digit.

Parameters: safetensors totals of meta-llama/Llama-4-Scout-17B-16E, Llama-4-Maverick-17B-128E and Llama-Guard-4-12B on
Hugging Face; the make-up follows from their config.json. FLOPs: NVIDIA/dgxc-benchmarking llama4/README.md.
"""

import pytest

from l4spec.sharding.layout import Layout
from planners.catalog import engine
from planners.counts.flops import count_flops
from planners.counts.kv_cache import model_rows, requests_in_blocks, tokens_in_blocks
from planners.counts.params import count_params
from planners.plan import plan
from tests.planners.models import graph

GIB = 1 << 30
TOTALS = {
    # text total, total, active, active without embedding, active with vision
    "scout": (107_769_861_120, 108_641_793_536, 17_172_894_720, 16_138_408_960, 18_044_827_136),
    "maverick": (400_711_848_960, 401_583_781_376, 17_184_691_200, 16_150_205_440, 18_056_623_616),
    "llama-guard-4-12b": (11_129_164_800, 12_001_097_216, 11_129_164_800, 10_094_679_040, 12_001_097_216),
}
EMBEDDING, EXPERT, DENSE = 1_034_485_760, 125_829_120, 251_658_240
BY_PART = {
    "scout": {"router": 48 * 81_920, "routed_experts": 96_636_764_160, "shared_expert": 48 * EXPERT},
    "maverick": {
        "router": 24 * 655_360,
        "routed_experts": 386_547_056_640,
        "shared_expert": 24 * EXPERT,
        "dense_ffn": 24 * DENSE,
    },
    "llama-guard-4-12b": {"dense_ffn": 48 * EXPERT},
}
EVERYWHERE = {
    "attention": 48 * 62_914_560,
    "norm": 48 * 10_240 + 5120,
    "embedding": EMBEDDING,
    "head": EMBEDDING,
    "vision": 850_960_896,
    "projector": 20_971_520,
}


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_equal_the_published_checkpoints(name: str) -> None:
    params = count_params(graph(name))
    seeing = params.by_part["vision"] + params.by_part["projector"]
    result = (
        params.total - seeing,
        params.total,
        params.active,
        params.active_without_embedding,
        params.active_with_vision,
    )
    assert result == TOTALS[name]
    assert params.by_part == EVERYWHERE | BY_PART[name]


def test_mobilellm_counts_its_tied_table_once() -> None:
    params = count_params(graph("mobilellm-r1-950m"))
    assert params.total == params.active == params.active_without_embedding == 949_685_760


@pytest.mark.parametrize(("name", "gflop"), [("scout", 32.276), ("maverick", 32.299)])
def test_flops_of_a_token_are_two_per_active_weight_outside_the_table(name: str, gflop: float) -> None:
    flops, params = count_flops(graph(name), context=1, batch=1), count_params(graph(name))
    assert flops.forward_per_token == 2 * (params.active_without_embedding - params.by_part["norm"])
    assert round(flops.forward_per_token / 1e9, 3) == gflop
    assert flops.attention_per_pair == 48 * 20_480
    assert flops.vision_per_tile is not None
    assert round(flops.vision_per_tile / 1e9, 2) == 1015.63


@pytest.mark.parametrize(("length", "published"), [(8192, 891_973_439_324_160), (4096, 421_247_708_037_120)])
def test_training_flops_equal_nvidias_formula_but_for_routers_and_its_half_square_of_pairs(
    length: int, published: int
) -> None:
    flops, params = count_flops(graph("maverick"), context=length, batch=1), count_params(graph("maverick"))
    routers = 3 * length * 2 * params.by_part["router"]
    diagonal = 3 * flops.attention_per_pair * length // 2  # S (S + 1) / 2 pairs are S / 2 more than S^2 / 2
    assert flops.train_step - routers - diagonal == published


def test_prefill_and_decode_of_scout_count_pairs_chunk_by_chunk() -> None:
    context, chunk = 20_000, 8192
    pairs_of = [context * (context + 1) // 2] * 12
    local = 2 * chunk * (chunk + 1) // 2 + (context - 2 * chunk) * (context - 2 * chunk + 1) // 2
    pairs = sum(pairs_of) + 36 * local
    flops = count_flops(graph("scout"), context=context, batch=3)
    head = 2 * EMBEDDING
    body = flops.forward_per_token - head
    assert flops.prefill == 3 * (context * body + head + 20_480 * pairs)
    seen = 12 * context + 36 * (context - 2 * chunk)
    assert flops.decode == 3 * (flops.forward_per_token + 20_480 * seen)


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_cache_of_ten_million_tokens(name: str) -> None:
    larger = graph(name, "text.max_seq_len=10485760")
    ideal, full = (plan(larger, context=10_000_000, engine=kind).kv_cache for kind in ("ideal", "full"))
    assert (ideal.bytes_per_token_unbounded, ideal.bytes_per_token_global) == (196_608, 49_152)
    assert ideal.bytes == 1_207_959_552 + 10_000_000 * 49_152
    assert full.bytes == 10_000_000 * 196_608
    assert (round(ideal.bytes / 1e9, 2), round(full.bytes / 1e9, 2)) == (492.73, 1966.08)


def test_local_layers_stop_growing_at_their_chunk() -> None:
    local = [
        sum(row.num_layers * row.bytes for row in plan(graph("scout"), context=length).kv_cache.layers if row.bound)
        for length in (8191, 8192, 8193, 1_000_000)
    ]
    assert local == [8191 * 147_456, 1_207_959_552, 1_207_959_552, 1_207_959_552]


def test_vllms_hybrid_pool_of_scout_holds_what_its_log_says() -> None:
    """91,495 blocks at TP4: 365,968 tokens, 44.68 requests of 8,192.

    llm-d-incubation/llm-d-planner, accuracy/results/v0.19.0/logs/
    meta-llama-llama-4-scout--h100-80gb--tp4pp1dp1--8192.log
    """
    rows, hybrid = model_rows(graph("scout"), Layout(tp=4), 2), engine("vllm-hybrid")
    assert tokens_in_blocks(rows, hybrid, 91_495) == 365_968
    assert round(requests_in_blocks(rows, hybrid, 91_495, 8192), 2) == 44.68


def test_scout_in_bf16_takes_its_weights_and_a_rope_table_on_each_of_four_gpus() -> None:
    """53.12 GiB measured (the same log); a quarter of the weights and a table of 10,485,760 x 128 x 2 B are 53.09.

    Norms, routers and the tower's position table are whole on every GPU.
    """
    memory = plan(graph("scout"), gpus="4xH100", tp=4, engine="vllm").memory_per_device
    table = next(term for term in memory.terms if term.name == "rope table")
    assert (table.bytes, table.origin) == (10_485_760 * 128 * 2, "exact")
    assert (memory.weights_bytes + table.bytes) / GIB == pytest.approx(53.09, rel=3e-4)
    assert (memory.weights_bytes + table.bytes) / GIB == pytest.approx(53.12, rel=5e-4)


def test_a_full_cache_at_scouts_longest_context_takes_240_gib_on_each_of_eight_gpus() -> None:
    """ai-dynamo/dynamo#731: 24,576 B per token a GPU."""
    memory = plan(graph("scout"), gpus="8xH100", tp=8, engine="vllm", context=10_485_760).memory_per_device
    assert memory.kv_cache_bytes == 240 * GIB


FOOTPRINTS = {
    "bf16": (217.28, 803.17),
    "fp8": (111.59, 404.54),
    "fp8-experts": (120.65, 416.62),
    "int4-mixed": (63.27, 218.82),
    "w4a16": (60.39, 211.46),
    "w4a16-ffn": (64.87, 215.94),
    "nvfp4": (65.34, 230.14),
}


@pytest.mark.parametrize("scheme", FOOTPRINTS)
def test_footprints_are_within_a_thousandth(scheme: str) -> None:
    for name, gigabytes in zip(("scout", "maverick"), FOOTPRINTS[scheme], strict=True):
        assert plan(graph(name), quantization=scheme).weights.bytes / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_four_bits_are_never_half_a_byte_a_parameter() -> None:
    for name, naive in (("scout", 54.32), ("maverick", 200.79)):
        assert round(count_params(graph(name)).total / 2e9, 2) == naive
        for scheme in ("w4a16", "w4a16-ffn", "int4-mixed", "nvfp4", "mxfp4", "gguf-q4_k_m"):
            assert plan(graph(name), quantization=scheme).weights.bytes > 1.04e9 * naive
