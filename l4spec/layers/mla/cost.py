"""What multi-head latent attention costs.

Prefill expands keys and values from the latent (as every implementation does for many queries). A decode step may
instead absorb the expansion into query and output ("weight absorption"); `operations` counts the expanded form for the
new tokens, whose attention pairs are the mathematics' own, and leaves out re-expanding cached latents.
"""

from l4spec.layers.base import Width
from l4spec.layers.declaration import (
    AttentionPairs,
    Buffer,
    CacheEntry,
    Declaration,
    Dim,
    Elementwise,
    Matmul,
    Operation,
    Parameter,
    Work,
    linear,
    tokens_of,
)
from l4spec.layers.masks import attended_pairs, cache_bound
from l4spec.layers.mla.spec import MLASpec


def declare(spec: MLASpec, width: Width) -> Declaration:
    """Low-rank query and key/value projections, a latent cache of kv_lora_rank + qk_rope_head_dim elements a token."""
    hidden = Dim("hidden", width.hidden_size)
    qk_dim = spec.qk_nope_head_dim + spec.qk_rope_head_dim
    heads_qk = Dim("heads", spec.num_heads * qk_dim, spec.num_heads)
    heads_kv = Dim("heads", spec.num_heads * (spec.qk_nope_head_dim + spec.v_head_dim), spec.num_heads)
    heads_v = Dim("heads", spec.num_heads * spec.v_head_dim, spec.num_heads)
    latent = Dim("latent", spec.kv_lora_rank)
    compressed = Dim("latent", spec.kv_lora_rank + spec.qk_rope_head_dim)
    query = _query_projections(spec, hidden, heads_qk)
    kv_a = linear("kv_a_proj", compressed, hidden, "attention", bias=spec.bias)
    kv_norm = Parameter("kv_a_norm.weight", (latent,), "attention", "norm")
    kv_b = linear("kv_b_proj", heads_kv, latent, "attention")
    o = linear("o_proj", hidden, heads_v, "attention", bias=spec.bias)
    matmuls = tuple(p for p in (*query, *kv_a, *kv_b, *o) if p.role == "linear")

    def operations(work: Work) -> tuple[Operation, ...]:
        pairs = work.num_sequences * attended_pairs(spec.mask, work.num_queries, work.num_cached)
        projections = tuple(Matmul(p.name.removesuffix(".weight"), work.num_tokens, p) for p in matmuls)
        return (
            *projections[:-1],  # x @ W_q_a.T @ W_q_b.T, x @ W_kv_a.T, latent @ W_kv_b.T
            Elementwise("rotate_normalise", work.num_tokens * (heads_qk.size + compressed.size)),  # rope, latent norms
            AttentionPairs("attend", pairs, spec.num_heads, qk_dim, spec.v_head_dim),  # softmax(q k.T) v
            projections[-1],  # y @ W_o.T
        )

    def live(work: Work) -> tuple[Buffer, ...]:
        rows = work.num_tokens
        widths = {"normed_input": hidden, "query": heads_qk, "latent": compressed, "key": heads_qk, "value": heads_v}
        return tuple(Buffer(name, rows, (dim,)) for name, dim in (*widths.items(), ("attended", heads_v)))

    bound = cache_bound(spec.mask)
    rope_key = Dim("latent", spec.qk_rope_head_dim)
    cache = (CacheEntry("latent", (latent,), bound), CacheEntry("rope_key", (rope_key,), bound)) if bound else ()
    stream = tokens_of(width.hidden_size)
    return Declaration(
        (*query, *kv_a, kv_norm, *kv_b, *o),
        operations,
        inputs=(stream,),
        output=stream,
        cache=cache,
        live=live,
        saved=live,
    )


def _query_projections(spec: MLASpec, hidden: Dim, heads_qk: Dim) -> tuple[Parameter, ...]:
    if spec.q_lora_rank is None:
        return linear("q_proj", heads_qk, hidden, "attention")
    rank = Dim("latent", spec.q_lora_rank)
    norm = Parameter("q_a_norm.weight", (rank,), "attention", "norm")
    down = linear("q_a_proj", rank, hidden, "attention", bias=spec.bias)
    return (*down, norm, *linear("q_b_proj", heads_qk, rank, "attention"))
