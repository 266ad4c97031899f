"""Cost and cache of attention to a window and to compressed entries.

A token keeps its shared key within the window. Earlier tokens have an entry for each `ratio` tokens, with a small key
if an index chooses. Keys and gates of tokens that later entries are made of are kept until those are made: a window of
one token less than an entry is made of.
"""

from functools import partial

from l4spec.layers.attention.positions import rotations_of
from l4spec.layers.base import Width
from l4spec.layers.common.frozen import FrozenMatmul
from l4spec.layers.compressed_attention.pairs import bands, entry_pairs, window_pairs
from l4spec.layers.compressed_attention.spec import CompressedAttentionSpec, Compression
from l4spec.layers.declaration import (
    AttentionPairs,
    Bound,
    Buffer,
    CacheEntry,
    Declaration,
    Dim,
    Elementwise,
    HeadProducts,
    Matmul,
    Operation,
    Parameter,
    TokenMixing,
    Work,
    linear,
    tokens_of,
)


def declare(spec: CompressedAttentionSpec, width: Width) -> Declaration:
    """Low-rank queries, one key for all heads, output in groups; compressors of entries and of an index's keys.

    Tensor parallelism cuts groups of heads. The index has no gradient, and is whole on every rank as entries are.
    `operations` counts what queries attend to, and for an index every finished entry; our module masks the others, so
    `executed` counts the blocks that it computes. Keys and gates that finish no entry have no gradient.
    """
    stream = tokens_of(width.hidden_size)
    weights = _parameters(spec, Dim("hidden", width.hidden_size))
    compression = spec.compression
    ratio = compression.ratio if compression else None

    def operations(work: Work) -> tuple[Operation, ...]:
        return _operations(spec, work, weights, *_attended(spec, work))

    def executed(work: Work) -> tuple[Operation, ...]:
        walked = tuple(bands(work.num_queries, work.num_cached, spec.window, ratio))
        pairs, scored = sum(band.pairs for band in walked), sum(band.scored for band in walked)
        return _operations(spec, work, weights, pairs, scored)

    buffers = partial(_buffers, spec, Dim("hidden", width.hidden_size))
    reach = Bound("full") if compression else Bound("window", spec.window)
    return Declaration(
        tuple(parameter for group in weights for parameter in group),
        operations,
        inputs=(stream,),
        output=stream,
        cache=_cache(spec),
        live=buffers,
        saved=buffers,
        executed=executed,
        mixing=TokenMixing(reach, rotations_of(spec.position, spec.rope_head_dim)),
    )


def _attended(spec: CompressedAttentionSpec, work: Work) -> tuple[int, int]:
    """(query, key) pairs of a sequence, entries included, and (query, entry) pairs that an index scores."""
    tokens, compression = (work.num_queries, work.num_cached), spec.compression
    pairs = window_pairs(*tokens, spec.window)
    if compression is None:
        return pairs, 0
    most = compression.index.topk if compression.index else None
    return pairs + entry_pairs(*tokens, compression.ratio, most), entry_pairs(*tokens, compression.ratio)


def _operations(
    spec: CompressedAttentionSpec, work: Work, weights: tuple[tuple[Parameter, ...], ...], pairs: int, scored: int
) -> tuple[Operation, ...]:
    main, compressor, index = weights
    compression, length = spec.compression, work.num_cached + work.num_queries
    ends = compression is not None and length // compression.ratio > work.num_cached // compression.ratio
    return (
        *_products(Matmul, main[:3], work),  # x @ W_q_a.T @ W_q_b.T, x @ W_kv.T
        Elementwise("rotate_normalise", work.num_tokens * (spec.num_heads + 1) * spec.head_dim),  # norms and rope
        *_products(Matmul if ends else FrozenMatmul, compressor, work),  # x @ W.T of keys and gates
        *_compressing(spec, work, index, scored),
        AttentionPairs("attend", work.num_sequences * pairs, spec.num_heads, spec.head_dim, spec.head_dim, False),
        Elementwise("rotate_back", work.num_tokens * spec.num_heads * spec.rope_head_dim),
        *_products(Matmul, main[-2:], work),  # y @ W_o_a.T by groups, @ W_o_b.T
    )


def _products(kind: type[Matmul], weights: tuple[Parameter, ...], work: Work) -> tuple[Operation, ...]:
    """All tokens through each of these weights."""
    matmuls = (weight for weight in weights if weight.input_dim is not None)
    return tuple(kind(weight.name.removesuffix(".weight"), work.num_tokens, weight) for weight in matmuls)


def _compressing(
    spec: CompressedAttentionSpec, work: Work, index: tuple[Parameter, ...], scored: int
) -> tuple[Operation, ...]:
    """Gated sums of keys, and the index's scores of `scored` (query, entry) pairs of a sequence."""
    compression = spec.compression
    if compression is None:
        return ()
    taken = work.num_tokens * compression.num_series * spec.head_dim
    weigh = Elementwise("compress", taken, reads=2)  # sum of softmax(gate) * key
    if compression.index is None:
        return (weigh,)
    sizes = compression.index
    score = HeadProducts("index", sizes.num_heads, work.num_sequences * scored * (sizes.head_dim + 1), 0)
    taken = work.num_tokens * compression.num_series * sizes.head_dim
    rotated = work.num_tokens * sizes.num_heads * sizes.head_dim
    return (
        weigh,
        *_products(FrozenMatmul, index, work),  # keys and gates, queries, weights of heads
        Elementwise("compress_index", taken, reads=2),
        Elementwise("rotate_index", rotated),
        score,  # sum over heads of w relu(q k.T)
    )


def _parameters(
    spec: CompressedAttentionSpec, hidden: Dim
) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...], tuple[Parameter, ...]]:
    """Of the layer itself, of its compressor and of its index; the output's two matrices are the last of the first."""
    groups, rank, key = spec.num_output_groups, Dim("latent", spec.q_lora_rank), Dim("latent", spec.head_dim)
    heads, narrowed = (
        Dim("heads", size, groups) for size in (spec.num_heads * spec.head_dim, groups * spec.output_lora_rank)
    )
    query_and_key = (
        *linear("q_a_proj", rank, hidden, "attention"),
        *linear("q_b_proj", heads, rank, "attention"),
        *linear("kv_proj", key, hidden, "attention"),
    )
    rest = (
        Parameter("q_a_norm.weight", (rank,), "attention", "norm"),
        Parameter("kv_norm.weight", (key,), "attention", "norm"),
        Parameter("sinks", (Dim("heads", spec.num_heads, groups),), "attention", "other"),
        *linear("o_a_proj", narrowed, Dim("group", spec.group_width), "attention"),
        *linear("o_b_proj", hidden, narrowed, "attention"),
    )
    compression = spec.compression
    if compression is None:
        return (*query_and_key, *rest), (), ()
    compressor = _compressor("compressor", compression, spec.head_dim, hidden)
    return (*query_and_key, *rest), compressor, _index(compression, rank, hidden)


def _compressor(name: str, compression: Compression, key_width: int, hidden: Dim) -> tuple[Parameter, ...]:
    """Keys and gates of a token, a bias of the gate by its place in the window, and the norm of entries.

    Releases leave the projections unquantized, as schemes do here.
    """
    series, place = Dim("series", compression.num_series * key_width), Dim("place", compression.ratio)
    return (
        *linear(f"{name}.kv_proj", series, hidden, "attention", role="other"),
        *linear(f"{name}.gate_proj", series, hidden, "attention", role="other"),
        Parameter(f"{name}.position_bias", (place, series), "attention", "other"),
        Parameter(f"{name}.kv_norm.weight", (Dim("latent", key_width),), "attention", "norm"),
    )


def _index(compression: Compression, rank: Dim, hidden: Dim) -> tuple[Parameter, ...]:
    sizes = compression.index
    if sizes is None:
        return ()
    queries, heads = Dim("index", sizes.num_heads * sizes.head_dim), Dim("index", sizes.num_heads)
    return (
        *_compressor("index", compression, sizes.head_dim, hidden),
        *linear("index.q_b_proj", queries, rank, "attention"),
        *linear("index.weights_proj", heads, hidden, "attention", role="router"),
    )


def _cache(spec: CompressedAttentionSpec) -> tuple[CacheEntry, ...]:
    """Keys of the window; entries with their index keys; keys and gates that later entries are made of."""
    window = CacheEntry("key", (Dim("latent", spec.head_dim),), Bound("window", spec.window))
    compression = spec.compression
    if compression is None:
        return (window,)
    finished, waiting = Bound("compressed", compression.ratio), Bound("window", compression.reach - 1)
    series = compression.num_series
    index, chosen = compression.index, compression.index.topk if compression.index else None
    entries = [CacheEntry("entry", (Dim("latent", spec.head_dim),), finished, num_chosen=chosen)]
    before = [CacheEntry("gated_key", (Dim("latent", 2 * series * spec.head_dim),), waiting)]
    if index is not None:
        entries.append(CacheEntry("index_key", (Dim("index", index.head_dim),), finished))
        before.append(CacheEntry("gated_index_key", (Dim("index", 2 * series * index.head_dim),), waiting))
    return (window, *entries, *before)


def _buffers(spec: CompressedAttentionSpec, hidden: Dim, work: Work) -> tuple[Buffer, ...]:
    groups, rank = spec.num_output_groups, Dim("latent", spec.q_lora_rank)
    heads, narrowed = (
        Dim("heads", size, groups) for size in (spec.num_heads * spec.head_dim, groups * spec.output_lora_rank)
    )
    widths = {"normed_input": hidden, "query_latent": rank, "query": heads, "key": Dim("latent", spec.head_dim)}
    widths |= {"attended": heads, "rotated_back": heads, "narrowed": narrowed}
    compression = spec.compression
    if compression is not None:
        widths["gated_key"] = Dim("latent", 2 * compression.num_series * spec.head_dim)
        if compression.index is not None:
            widths["index_query"] = Dim("index", compression.index.num_heads * compression.index.head_dim)
    readers = {"normed_input": ("q_a_proj", "kv_proj"), "rotated_back": ("o_a_proj",), "narrowed": ("o_b_proj",)}
    return tuple(
        Buffer(name, work.num_tokens, (dim,), gradient_of=readers.get(name, ())) for name, dim in widths.items()
    )
