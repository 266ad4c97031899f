"""Chunking of a scan: chunks whose tokens are computed in parallel, with a state passed from chunk to chunk."""

from l4spec.layers.declaration import HeadProducts, Work

CHUNK = 64
"""Tokens of a chunk: products inside it grow with its square, the number of steps falls with it."""
CHANNEL_CHUNK = 16
"""Tokens of a chunk where each channel has a decay of its own: keys are decayed for each of its tokens."""


def chunks_of(num_tokens: int, chunk: int = CHUNK) -> list[int]:
    """Sizes of the chunks of so many new tokens; the last one may be shorter."""
    whole, rest = divmod(num_tokens, chunk)
    return [chunk] * whole + ([rest] if rest else [])


def recurrence(name: str, work: Work, num_heads: int, products_per_token: int) -> HeadProducts:
    """Products of a recurrence by its formula: `products_per_token` multiply-adds per token in each head."""
    return HeadProducts(name, num_heads, work.num_tokens * products_per_token)


def delta_rule_products(work: Work, num_heads: int, key_dim: int, value_dim: int, chunk: int = CHUNK) -> HeadProducts:
    """Products that `delta_rule` and `channel_delta_rule` run: one step for one token, else chunk by chunk."""
    state = key_dim * value_dim
    if work.num_queries == 1:
        return HeadProducts("delta_rule", num_heads, work.num_sequences * 3 * state)
    forward = backward = 0
    sizes = chunks_of(work.num_queries, chunk)
    for index, size in enumerate(sizes):
        scores, solved = 2 * size * size * key_dim, size * (size - 1) // 2 * value_dim  # k k^T and q k^T; T^-1 v
        attended, read, written = size * size * value_dim, 2 * size * state, size * state
        forward += scores + solved + attended + read + written
        backward += 2 * scores + solved + size * size * value_dim + 2 * attended
        backward += read if index == 0 else 2 * read  # zeros before the first token have no gradient
        backward += 0 if index == len(sizes) - 1 else 2 * written  # nor has what no token reads
    return HeadProducts("delta_rule", num_heads, work.num_sequences * forward, work.num_sequences * backward)


def scan_products(work: Work, num_heads: int, key_dim: int, value_dim: int) -> HeadProducts:
    """Products that `l4spec.layers.recurrent.scan` runs: one step for one token, else chunk by chunk."""
    state = key_dim * value_dim
    if work.num_queries == 1:
        return HeadProducts("scan", num_heads, work.num_sequences * 2 * state)
    forward = backward = 0
    sizes = chunks_of(work.num_queries)
    for index, size in enumerate(sizes):
        inside, passed = size * size * (key_dim + value_dim), size * state  # q k^T and its values; read, written
        forward += inside + 2 * passed
        backward += 2 * inside
        backward += passed if index == 0 else 2 * passed  # zeros before the first token have no gradient
        backward += 0 if index == len(sizes) - 1 else 2 * passed  # nor has what no token reads
    return HeadProducts("scan", num_heads, work.num_sequences * forward, work.num_sequences * backward)
