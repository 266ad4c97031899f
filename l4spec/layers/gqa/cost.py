"""Cost of grouped-query attention."""

from collections.abc import Mapping

from l4spec.layers.attention.masks import attended_pairs, cache_bound
from l4spec.layers.attention.positions import rotations_of
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
from l4spec.layers.gqa.spec import GQASpec, RMSQKNorm


def declare(spec: GQASpec, width: Width) -> Declaration:
    """Projections q, k, v, o; exact attended pairs of the mask; a key and a value cache by the mask's law.

    Weights are [out, in]. Softmax, rotation, norms and soft-cap count no FLOPs by convention.
    """
    hidden = Dim("hidden", width.hidden_size)
    heads = Dim("heads", spec.num_heads * spec.head_dim, spec.num_heads)
    kv_heads = Dim("kv_heads", spec.num_kv_heads * spec.head_dim, spec.num_kv_heads)
    v_heads = Dim("kv_heads", spec.num_kv_heads * spec.value_dim, spec.num_kv_heads)
    attended = Dim("heads", spec.num_heads * spec.value_dim, spec.num_heads)
    q = linear("q_proj", heads, hidden, "attention", bias=spec.qkv_bias)
    k = linear("k_proj", kv_heads, hidden, "attention", bias=spec.qkv_bias)
    v = () if spec.values_from_keys else linear("v_proj", v_heads, hidden, "attention", bias=spec.qkv_bias)
    o = linear("o_proj", hidden, attended, "attention", bias=spec.output_bias)
    gate = _output_gate(spec, attended, hidden)
    weights = {p.name.removesuffix(".weight"): p for p in (*q, *k, *v, *gate, *o) if p.role == "linear"}

    def operations(work: Work) -> tuple[Operation, ...]:
        pairs = attended_pairs(spec.mask, work.num_queries, work.num_cached)
        return _operations(spec, work, pairs, weights, (spec.head_dim, spec.value_dim))

    def executed(work: Work) -> tuple[Operation, ...]:
        from l4spec.layers.attention.walk import walk  # for plans of our own module alone

        pairs = walk(spec.mask, work.num_queries, work.num_cached).pairs(capped=not spec.is_fused)
        widest = max(spec.head_dim, spec.value_dim)  # a fused kernel takes one width
        dims = (widest, widest) if spec.is_fused else (spec.head_dim, spec.value_dim)
        return _operations(spec, work, pairs, weights, dims)

    bound = cache_bound(spec.mask)
    cache = (CacheEntry("key", (kv_heads,), bound), CacheEntry("value", (v_heads,), bound)) if bound else ()
    stream = tokens_of(width.hidden_size)
    return Declaration(
        (*q, *k, *v, *gate, *o, *_qk_norms(spec, heads, kv_heads), *_sinks(spec)),
        operations,
        inputs=(stream,),
        output=stream,
        cache=cache,
        live=lambda work: _live(spec, work, hidden),
        saved=lambda work: (*_live(spec, work, hidden), _log_sum_exp(spec, work)),
        executed=executed,
        mixing=TokenMixing(bound, rotations_of(spec.position, spec.head_dim)),
        uncut=_uncut(spec),
        recomputed=("log_sum_exp",),
    )


def _uncut(spec: GQASpec) -> dict[str, str]:
    is_whole = isinstance(spec.qk_norm, RMSQKNorm) and spec.qk_norm.over == "width"
    return {"tp": "queries and keys are normed over all heads (qk_norm.over: width)"} if is_whole else {}


def _operations(
    spec: GQASpec, work: Work, pairs_per_sequence: int, weights: Mapping[str, Parameter], dims: tuple[int, int]
) -> tuple[Operation, ...]:
    pairs, fused = work.num_sequences * pairs_per_sequence, spec.is_fused
    q, k, o = (weights[name] for name in ("q_proj", "k_proj", "o_proj"))
    v, gate = (tuple(p for p in (weights.get(name),) if p) for name in ("v_proj", "gate_proj"))
    rotated = work.num_tokens * (q.shape[0] + k.shape[0])
    values = work.num_tokens * spec.num_kv_heads * spec.value_dim
    return (
        Matmul("q_proj", work.num_tokens, q),  # x @ W_q.T
        Matmul("k_proj", work.num_tokens, k),  # x @ W_k.T
        *(Matmul("v_proj", work.num_tokens, weight) for weight in v),  # x @ W_v.T
        Elementwise("rotate_normalise", rotated),  # rope, qk norm, temperature
        *((Elementwise("normalise_values", values),) if spec.value_norm else ()),  # v / rms(v)
        AttentionPairs("attend", pairs, spec.num_heads, *dims, fused),  # softmax(q k.T) v
        *(Matmul("gate_proj", work.num_tokens, weight) for weight in gate),  # x @ W_gate.T
        *(Elementwise("gate", work.num_tokens * o.shape[1], reads=2) for _ in gate),  # sigmoid(gate) * attended
        Matmul("o_proj", work.num_tokens, o),  # y @ W_o.T
    )


def _live(spec: GQASpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    heads, attended = (Dim("heads", spec.num_heads * dim, spec.num_heads) for dim in (spec.head_dim, spec.value_dim))
    keys, values = (Dim("kv_heads", spec.num_kv_heads * d, spec.num_kv_heads) for d in (spec.head_dim, spec.value_dim))
    widths = {"normed_input": hidden, "query": heads, "key": keys, "value": values, "attended": attended}
    if spec.output_gate is not None:
        widths |= {"gate": _gate_dim(spec, attended), "gated": attended}
    readers = {"normed_input": ("q_proj", "k_proj", "v_proj", "gate_proj"), "gated": ("o_proj",)}
    return tuple(
        Buffer(name, work.num_tokens, (dim,), gradient_of=readers.get(name, ())) for name, dim in widths.items()
    )


def _log_sum_exp(spec: GQASpec, work: Work) -> Buffer:
    return Buffer("log_sum_exp", work.num_tokens, (Dim("heads", spec.num_heads),), bytes_per_element=4)


def _qk_norms(spec: GQASpec, heads: Dim, kv_heads: Dim) -> tuple[Parameter, ...]:
    if not isinstance(spec.qk_norm, RMSQKNorm):
        return ()
    head_dim = Dim("head_dim", spec.head_dim)
    query, key = (heads, kv_heads) if spec.qk_norm.over == "width" else (head_dim, head_dim)
    start = 0.0 if spec.qk_norm.unit_offset else 1.0
    return tuple(
        Parameter(f"{name}.weight", (dim,), "attention", "norm", start=start)
        for name, dim in (("q_norm", query), ("k_norm", key))
    )


def _sinks(spec: GQASpec) -> tuple[Parameter, ...]:
    return (Parameter("sinks", (Dim("heads", spec.num_heads),), "attention", "other"),) if spec.sinks else ()


def _gate_dim(spec: GQASpec, heads: Dim) -> Dim:
    return heads if spec.output_gate == "elementwise" else Dim("heads", spec.num_heads)


def _output_gate(spec: GQASpec, heads: Dim, hidden: Dim) -> tuple[Parameter, ...]:
    if spec.output_gate is None:
        return ()
    return linear("gate_proj", _gate_dim(spec, heads), hidden, "attention", bias=spec.qkv_bias)
