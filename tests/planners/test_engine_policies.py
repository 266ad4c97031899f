"""What each engine keeps of a cache, and how much of a device it gives to what."""

import pytest

from l4spec.layers.declaration import Bound
from planners.catalog import engine, hardware
from planners.counts.kv_cache import CacheRow
from planners.counts.kv_cache import cache_bytes as cache_bytes_of
from planners.device.memory import Budget, DeviceUse
from planners.plan import plan
from tests.planners.models import graph

GIB = 1 << 30
FULL_LAYER = 4096  # bytes per token of one layer of Scout, bf16
GLOBAL, LOCAL, CHUNK = 12, 36, 8192


def cache_bytes(name: str, context: int, batch: int = 1) -> int:
    return plan(graph("scout"), engine=name, context=context, batch=batch).kv_cache.bytes


@pytest.mark.parametrize("context", [1, 100, 8192, 8193, 100_000])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_laws_of_the_engines(context: int, batch: int) -> None:
    local = min(context, CHUNK)
    blocks, local_blocks = -(-context // 16), -(-local // 16)
    cells = (
        -(-min(context * batch, CHUNK * batch + 512) // 256) * 256
    )  # pad(min(ctx, window x sequences + ubatch), 256)
    mixed = -(-batch * (context + local) // 2)  # SGLang at p = 0.5: half the full pool, half the chunk
    tokens = {
        "ideal": (context * batch, local * batch),
        "full": (context * batch, context * batch),
        "vllm": (16 * blocks * batch, 16 * blocks * batch),
        "vllm-hybrid": (16 * blocks * batch, 16 * local_blocks * batch),
        "tensorrt-llm": (32 * -(-context // 32) * batch,) * 2,
        "llama.cpp": (256 * -(-context * batch // 256), cells),
        "sglang-hybrid": (context * batch, mixed),
    }
    for name, (in_global, in_local) in tokens.items():
        assert cache_bytes(name, context, batch) == FULL_LAYER * (GLOBAL * in_global + LOCAL * in_local), name


def test_pools_in_a_fixed_ratio_are_large_enough_for_windows_that_are_not_full() -> None:
    window, full = CacheRow(1, Bound("window", 100), 1), CacheRow(1, Bound("full"), 1)
    for context, in_full, in_windows in ((50, 63, 51), (120, 125, 100), (1000, 1000, 800)):  # 0.8 of the full pool
        assert cache_bytes_of((window,), engine("sglang-hybrid"), context, 1) == in_windows
        assert cache_bytes_of((window, full), engine("sglang-hybrid"), context, 1) == in_full + in_windows


def test_every_result_names_its_policy() -> None:
    for name in ("ideal", "full", "vllm", "vllm-hybrid", "sglang-hybrid", "llama.cpp", "tensorrt-llm"):
        cache = plan(graph("scout"), engine=name).kv_cache
        assert cache.policy == name
        assert len(cache.policy_explained) > 20


def use(weights: int = 0, cache: int = 0, activations: int = 0, reserved: int = 0) -> DeviceUse:
    return DeviceUse(weights, cache, activations, reserved)


def test_without_a_share_the_device_is_the_limit() -> None:
    assert Budget(100, "sheet").limit(use(weights=80, cache=30)) == 100


def test_a_share_bounds_what_it_covers_and_the_device_everything() -> None:
    budget = Budget(100, "sheet", 0.8, covers=frozenset({"weights", "kv_cache"}))
    assert budget.limit(use(weights=50, cache=30)) == 80
    assert budget.limit(use(weights=50, cache=30, activations=15)) == 95
    assert budget.limit(use(weights=50, cache=30, activations=25)) == 100


def test_reserved_memory_outside_the_share_takes_from_the_device_not_from_the_share() -> None:
    budget = Budget(100, "sheet", 0.9, covers=frozenset({"weights", "kv_cache", "activations"}), uncovered_bytes=5)
    assert budget.limit(use(weights=90, reserved=5)) == 95
    assert budget.limit(use(weights=94, reserved=5)) < use(weights=94, reserved=5).total


def test_a_share_of_what_is_free_after_loading_bounds_the_cache_alone() -> None:
    budget = Budget(100, "sheet", 0.9, after_load=True, covers=frozenset({"kv_cache"}))
    assert budget.limit(use(weights=50, cache=45)) == 50 + 45
    assert budget.limit(use(weights=101)) == 100
    assert budget.limit(use(weights=101)) < 101


def test_vllm_counts_tables_buffers_and_graphs_as_terms_of_their_own() -> None:
    memory = plan(graph("scout"), gpus="8xH100", engine="vllm").memory_per_device
    terms = {term.name: term for term in memory.terms}
    assert set(terms) == {"weights", "kv cache", "activations", "rope table", "non torch", "cuda graphs"}
    assert sum(term.bytes for term in terms.values()) == memory.total_bytes
    for name in ("activations", "non torch", "cuda graphs"):
        term = terms[name]
        assert (term.origin, bool(term.source)) == ("calibrated", True)
        assert term.spread is not None
        assert term.spread[0] <= term.bytes <= term.spread[1]
    assert terms["rope table"].origin == "exact"
    assert memory.capacity_bytes == int(0.92 * hardware("h100").usable.num_bytes) + terms["cuda graphs"].bytes


def test_a_memory_fraction_replaces_the_engines_own() -> None:
    half = plan(graph("scout"), gpus="8xH100", engine="vllm", memory_fraction=0.5)
    whole = plan(graph("scout"), gpus="8xH100", engine="vllm", memory_fraction=1.0)
    assert half.deployment.memory_fraction == 0.5
    assert half.max_context is not None
    assert whole.max_context is not None
    assert half.max_context < whole.max_context


def test_grouped_layers_that_cache_different_bytes_are_refused_with_a_way_out() -> None:
    uneven = graph("scout", "text.parts.global.num_kv_heads=4")
    with pytest.raises(ValueError, match="same bytes per token") as caught:
        plan(uneven, engine="vllm-hybrid")
    assert "--engine full" in str(caught.value)
    assert engine("vllm-hybrid").kv.kind == "layer_groups"
