"""Work of a layer on earlier tokens: attended pairs, scores of an index, and rows that are read."""

from functools import lru_cache

from l4spec.layers.declaration import AttentionPairs, Bound, Declaration, HeadProducts, Work

FAR = 1 << 20
"""A context at which an index has earlier tokens to score."""


@lru_cache(maxsize=4096)
def of_context(declaration: Declaration, length: int, cached: int) -> tuple[float, float]:
    """Attended pairs, and FLOPs of products without weights above those that each token has by itself."""
    new = max(length - cached, 1)
    operations = declaration.operations(Work(1, new, cached))
    pairs = sum(op.pairs for op in operations if isinstance(op, AttentionPairs))
    products = sum(op.flops for op in operations if isinstance(op, HeadProducts))
    if not products:
        return float(pairs), 0.0
    alone = sum(op.flops for op in declaration.operations(Work(1, 1)) if isinstance(op, HeadProducts))
    return float(pairs), float(max(products - new * alone, 0))


def mean_read(bound: Bound, context: float) -> float:
    """Tokens that a decode step reads whose own token is the last of about `context`.

    A fractional context is an average over sequences of unequal lengths: a chunk layer then reads half a chunk.
    """
    if bound.is_state:
        return 2.0  # read and written
    if bound.kind == "chunk" and bound.size is not None and context != int(context):
        return context if context <= bound.size else (bound.size + 1) / 2
    return float(bound.num_read(int(context))) if context == int(context) else min(context, bound.size or context)
