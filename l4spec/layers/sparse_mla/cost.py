"""Cost of sparse multi-head latent attention: that of the latents, and an index that chooses which are attended to.

`operations` counts the pairs that are chosen; every query asks the index about every earlier token. Our module masks
tokens that are not chosen, so `executed` counts all pairs.
"""

from dataclasses import replace

from l4spec.layers.attention.masks import SlidingWindowMask, attended_pairs
from l4spec.layers.attention.walk import Walk, walk
from l4spec.layers.base import Width
from l4spec.layers.common.frozen import FrozenMatmul
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
    Work,
    linear,
)
from l4spec.layers.mla.cost import absorbs
from l4spec.layers.mla.cost import declare as declare_dense
from l4spec.layers.sparse_mla.spec import SparseMLASpec


def declare(spec: SparseMLASpec, width: Width) -> Declaration:
    """As latent attention, with an index: queries of the query's latent, a key and a weight a head of the token.

    The index has no gradient. It is whole on every rank of tensor parallelism, as in engines.
    """
    dense = declare_dense(spec.dense(), width)
    parameters = _index_parameters(spec, Dim("hidden", width.hidden_size))
    projections = tuple(p for p in parameters if p.input_dim is not None)
    key = Dim("index", spec.index_head_dim)

    def operations(work: Work) -> tuple[Operation, ...]:
        chosen = attended_pairs(SlidingWindowMask(kind="sliding_window", size=spec.index_topk), *_tokens(work))
        asked = attended_pairs(spec.mask, *_tokens(work))
        return _with_index(dense.operations(work), work, chosen, asked)

    def executed(work: Work) -> tuple[Operation, ...]:
        walked = walk(spec.mask, *_tokens(work))
        pairs = walked.pairs(capped=True)
        rows = work.num_tokens if absorbs(spec.dense(), *_tokens(work)) else work.num_sequences * _expanded(walked)
        return tuple(
            replace(op, rows=rows) if isinstance(op, Matmul) and op.name == "kv_b_proj" else op
            for op in _with_index(dense.executed_operations(work), work, pairs, pairs)
        )

    def _with_index(of_dense: tuple[Operation, ...], work: Work, chosen: int, asked: int) -> tuple[Operation, ...]:
        score = HeadProducts("index", spec.index_num_heads, work.num_sequences * asked * (spec.index_head_dim + 1), 0)
        index: tuple[Operation, ...] = (
            *(FrozenMatmul(p.name.removesuffix(".weight"), work.num_tokens, p) for p in projections),  # q, k and w
            Elementwise("rotate_index", work.num_tokens * (spec.index_num_heads + 1) * key.size),  # norm and rope
            score,  # sum over heads of w relu(q k.T)
        )
        *before, attend, last = of_dense
        assert isinstance(attend, AttentionPairs)
        return (*before, *index, replace(attend, pairs=work.num_sequences * chosen), last)

    def live(work: Work) -> tuple[Buffer, ...]:
        scores = Buffer("index_scores", work.num_tokens, (Dim("index", spec.index_num_heads * key.size),))
        return (*dense.live(work), scores)

    latents = (entry._replace(num_chosen=spec.index_topk) for entry in dense.cache)
    return replace(
        dense,
        parameters=(*dense.parameters, *parameters),
        operations=operations,
        executed=executed,
        cache=(*latents, CacheEntry("index_key", (key,), Bound("full"))),
        live=live,
        saved=dense.saved,
    )


def _tokens(work: Work) -> tuple[int, int]:
    return work.num_queries, work.num_cached


def _expanded(walked: Walk) -> int:
    """Tokens whose keys and values are made of latents: those of each band of queries again."""
    return sum(block.keys for block in walked.blocks)


def _index_parameters(spec: SparseMLASpec, hidden: Dim) -> tuple[Parameter, ...]:
    assert spec.q_lora_rank is not None, "checked by the schema"
    rank, key = Dim("latent", spec.q_lora_rank), Dim("index", spec.index_head_dim)
    queries, heads = Dim("index", spec.index_num_heads * spec.index_head_dim), Dim("index", spec.index_num_heads)
    return (
        *linear("index_q_proj", queries, rank, "attention"),
        *linear("index_k_proj", key, hidden, "attention"),
        Parameter("index_k_norm.weight", (key,), "attention", "norm"),
        Parameter("index_k_norm.bias", (key,), "attention", "bias"),
        *linear("index_weights_proj", heads, hidden, "attention", role="router"),
    )
