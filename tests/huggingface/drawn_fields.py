"""Random fields that the configs of many families have."""

from typing import Any

from hypothesis import strategies as st

Config = dict[str, Any]
Draw = st.DrawFn
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Config]:
    """Configs with these fields."""
    return st.fixed_dictionaries(fields)


sizes = st.integers(1, 64).map(lambda n: 8 * n)
factors = st.sampled_from([1.5, 2.0, 8.0, 16.0])
thetas = st.sampled_from([10000.0, 500000.0, 1e6, 12345.5])
flags = st.booleans()
windows = st.none() | st.integers(1, 4096)
ROUTED = ("n_group", "topk_group", "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "norm_topk_prob")


def ropes(theta: float) -> st.SearchStrategy[Config]:
    """`rope_parameters` of every known type."""
    base = {"rope_theta": st.just(theta)}
    original = {"original_max_position_embeddings": st.integers(16, 1024)}
    yarn: dict[str, st.SearchStrategy[Any]] = {"beta_fast": st.just(32.0), "mscale": factors, "mscale_all_dim": factors}
    freqs = {"low_freq_factor": st.just(1.0), "high_freq_factor": st.sampled_from([1.5, 4.0])}
    return st.one_of(
        some(rope_type=st.just("default"), **base),
        some(rope_type=st.just("linear"), factor=factors, **base),
        some(rope_type=st.just("llama3"), factor=factors, **freqs, **original, **base),
        some(rope_type=st.just("yarn"), factor=factors, **original, **base),
        some(rope_type=st.just("yarn"), factor=factors, **yarn, **original, **base),
    )


@st.composite
def common(draw: Draw, num_layers: int) -> Config:
    """Fields that all families have."""
    kv_heads, ratio, half = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 8))
    heads = kv_heads * ratio
    return {
        "hidden_size": heads * 4 * draw(st.integers(1, 16)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 4 * half,
        "num_hidden_layers": num_layers,
        "intermediate_size": draw(sizes),
        "vocab_size": draw(sizes),
        "max_position_embeddings": draw(st.integers(1025, 1 << 20)),
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "tie_word_embeddings": draw(flags),
        "rope_parameters": draw(thetas.flatmap(ropes)),
        "dtype": draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        "bos_token_id": draw(st.none() | st.integers(0, 7)),
        "eos_token_id": draw(st.none() | st.integers(0, 7) | st.lists(st.integers(0, 7), min_size=1, max_size=3)),
    }


def experts(prefix: str = "num_experts") -> st.SearchStrategy[Config]:
    """A number of experts and how many of them a token uses."""
    return st.integers(1, 64).flatmap(lambda n: some(**{prefix: st.just(n), "num_experts_per_tok": st.integers(1, n)}))
