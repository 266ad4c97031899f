"""Cost of multi-head latent attention.

Keys and values of a head can be expanded from the latent, or the expansion can be absorbed into query and output, whose
attention then runs over the latent itself (DeepSeek-V2, arXiv:2405.04434, section 2.1.2). `operations` counts a pair by
the cheaper form, which is the expanded one for every published model, and leaves out expanding cached latents again;
`executed_operations` counts the form that our module uses.
"""

from functools import partial

from l4spec.layers.attention.masks import NoMask, attended_pairs, cache_bound
from l4spec.layers.attention.positions import rotations_of
from l4spec.layers.attention.walk import walk
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
    TokenMixing,
    Work,
    linear,
    tokens_of,
)
from l4spec.layers.mla.spec import MLASpec


def declare(spec: MLASpec, width: Width) -> Declaration:
    """Low-rank query and key/value projections, a cache of kv_lora_rank + qk_rope_head_dim elements per token."""
    hidden, stream = Dim("hidden", width.hidden_size), tokens_of(width.hidden_size)
    qk_dim = spec.qk_nope_head_dim + spec.qk_rope_head_dim
    heads_qk = Dim("heads", spec.num_heads * qk_dim, spec.num_heads)
    heads_kv = Dim("heads", spec.num_heads * (spec.qk_nope_head_dim + spec.v_head_dim), spec.num_heads)
    heads_v = Dim("heads", spec.num_heads * spec.v_head_dim, spec.num_heads)
    latent, compressed = (Dim("latent", spec.kv_lora_rank + more) for more in (0, spec.qk_rope_head_dim))
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
            AttentionPairs("attend", pairs, spec.num_heads, *_cheaper(spec)),  # softmax(q k.T) v
            projections[-1],  # y @ W_o.T
        )

    def executed(work: Work) -> tuple[Operation, ...]:
        walked = walk(spec.mask, work.num_queries, work.num_cached)
        pairs, rows = work.num_sequences * walked.pairs(), work.num_sequences * walked.num_expanded
        is_absorbed = absorbs(spec, work.num_queries, work.num_cached)
        width = compressed.size if is_absorbed else max(qk_dim, spec.v_head_dim)  # the kernel takes one width
        attend = AttentionPairs("attend", pairs, spec.num_heads, width, width)
        expand = Matmul("kv_b_proj", work.num_tokens if is_absorbed else rows, kv_b[0])
        changed: dict[str, Operation] = {"attend": attend, "kv_b_proj": expand}
        return tuple(changed.get(op.name, op) for op in operations(work))

    widths = {"normed_input": hidden, "query": heads_qk, "latent": compressed, "key": heads_qk, "value": heads_v}
    live = partial(_buffers, (*widths.items(), ("attended", heads_v)))

    return Declaration(
        (*query, *kv_a, kv_norm, *kv_b, *o),
        operations,
        inputs=(stream,),
        output=stream,
        cache=_cache(spec),
        live=live,
        saved=live,
        executed=executed,
        mixing=TokenMixing(cache_bound(spec.mask), rotations_of(spec.position, spec.qk_rope_head_dim)),
        recomputed=("key", "value", "kv_b_proj"),
    )


def _buffers(widths: tuple[tuple[str, Dim], ...], work: Work) -> tuple[Buffer, ...]:
    readers = {"normed_input": ("q_proj", "q_a_proj", "kv_a_proj")}
    return tuple(Buffer(name, work.num_tokens, (dim,), gradient_of=readers.get(name, ())) for name, dim in widths)


def _cache(spec: MLASpec) -> tuple[CacheEntry, ...]:
    """The latent and the rotated key that all heads share; nothing if later tokens are seen."""
    bound = cache_bound(spec.mask)
    widths = {"latent": spec.kv_lora_rank, "rope_key": spec.qk_rope_head_dim}
    return tuple(CacheEntry(name, (Dim("latent", size),), bound) for name, size in widths.items()) if bound else ()


def absorbs(spec: MLASpec, num_queries: int, num_cached: int) -> bool:
    """True if our module absorbs the expansion rather than expanding `num_cached` tokens for `num_queries` new ones.

    Per cached token and head, attention over the latent costs (2 * rank - nope - v) more multiply-adds a query,
    expanding costs rank * (nope + v) once.
    """
    if not num_cached or isinstance(spec.mask, NoMask):
        return False
    expanded = spec.qk_nope_head_dim + spec.v_head_dim
    return num_queries * (2 * spec.kv_lora_rank - expanded) < spec.kv_lora_rank * expanded


def _cheaper(spec: MLASpec) -> tuple[int, int]:
    """Widths of query-key and value products in the form with fewer FLOPs a pair: expanded, or over the latent."""
    expanded = (spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim)
    absorbed = (spec.kv_lora_rank + spec.qk_rope_head_dim, spec.kv_lora_rank)
    return min(expanded, absorbed, key=sum)


def _query_projections(spec: MLASpec, hidden: Dim, heads_qk: Dim) -> tuple[Parameter, ...]:
    if spec.q_lora_rank is None:
        return linear("q_proj", heads_qk, hidden, "attention")
    rank = Dim("latent", spec.q_lora_rank)
    norm = Parameter("q_a_norm.weight", (rank,), "attention", "norm")
    down = linear("q_a_proj", rank, hidden, "attention", bias=spec.bias)
    return (*down, norm, *linear("q_b_proj", heads_qk, rank, "attention"))
