"""Pair counts and cache laws against enumerating the mask, query by query and key by key."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from l4spec.layers.attention.masks import Mask, attended_pairs, cache_bound
from tests.strategies import masks

ANY_MASK: st.SearchStrategy[Mask] = masks().map(TypeAdapter(Mask).validate_python)


def sees(mask: Mask, query: int, key: int) -> bool:
    """The mask as its definition says it, for one pair."""
    match mask.kind:
        case "causal":
            return key <= query
        case "chunked":
            return key <= query and query // mask.size == key // mask.size
        case "sliding_window":
            return query - mask.size < key <= query
        case "none":
            return True
        case "grid_window":
            raise AssertionError("windows of a grid are of images, which are drawn apart")


@given(ANY_MASK, st.integers(0, 60), st.integers(0, 90))
def test_pairs_equal_enumeration(mask: Mask, num_queries: int, num_cached: int) -> None:
    length = num_cached + num_queries
    pairs = sum(sees(mask, query, key) for query in range(num_cached, length) for key in range(length))
    assert attended_pairs(mask, num_queries, num_cached) == pairs


@given(masks(bidirectional=False).map(TypeAdapter(Mask).validate_python), st.integers(1, 120))
def test_a_decode_step_reads_the_keys_that_its_token_sees_and_the_cache_can_hold_them(mask: Mask, context: int) -> None:
    bound = cache_bound(mask)
    assert bound is not None
    seen = sum(sees(mask, context - 1, key) for key in range(context))
    assert bound.num_read(context) == seen == attended_pairs(mask, 1, context - 1)
    most = max(sum(sees(mask, query, key) for key in range(query + 1)) for query in range(context))
    assert bound.num_kept(context) == most


@given(ANY_MASK, st.integers(10**6, 10**9))
def test_pairs_of_huge_contexts_stay_exact(mask: Mask, length: int) -> None:
    whole = attended_pairs(mask, length)
    if mask.kind == "none":
        assert whole == length**2
    else:
        assert whole == attended_pairs(mask, length - 1) + attended_pairs(mask, 1, length - 1)


def test_bidirectional_attention_caches_nothing() -> None:
    assert cache_bound(TypeAdapter(Mask).validate_python({"kind": "none"})) is None
