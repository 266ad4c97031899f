"""Cost of a vocabulary: parameters and FLOPs per token, and, with a tokenizer's counts, per byte of text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from l4spec.graph.layer_graph import LayerGraph
from l4spec.units import ceil_div
from planners.catalog import engine
from planners.counts.flops import count_flops
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from planners.frozen import Frozen

MULTIPLE = 128
"""Rows of a tokenizer's table are padded to a multiple of it, so that tensor parallelism divides them."""


@dataclass(frozen=True, slots=True)
class CountedText:
    """Number of UTF-8 bytes of a text, and of its tokens by a tokenizer."""

    tokenizer: str
    text: str
    num_bytes: int
    num_tokens: int


class VocabularyRow(Frozen):
    """A vocabulary on a text. Null if there is no text.

    `vocabulary_params` are those of embedding and head. `flops_per_token` is the forward pass without attention, which
    a byte takes `tokens_per_byte` of; `kv_bytes_per_byte` is every layer's bf16 cache of the tokens of a byte.
    """

    tokenizer: str
    vocab_size: int
    params: int
    active_params: int
    vocabulary_params: int
    flops_per_token: int
    text: str | None = None
    num_bytes: int | None = None
    num_tokens: int | None = None
    tokens_per_byte: float | None = None
    flops_per_byte: float | None = None
    kv_bytes_per_byte: float | None = None


class VocabularyTable(Frozen):
    """Every vocabulary with every text, in the order given."""

    l4spec_vocabulary: Literal[1] = 1
    model: str
    rows: tuple[VocabularyRow, ...]


def padded(num_tokens: int) -> int:
    """Rows of the table of a tokenizer with so many tokens."""
    return ceil_div(num_tokens, MULTIPLE) * MULTIPLE


def vocabulary_table(
    model: str, variants: Iterable[tuple[str, LayerGraph]], counts: Iterable[CountedText]
) -> VocabularyTable:
    """The table of graphs that differ in their vocabulary, each with the name of its tokenizer."""
    known = tuple(counts)
    rows = (row for tokenizer, graph in variants for row in _rows(tokenizer, graph, known))
    return VocabularyTable(model=model, rows=tuple(rows))


def _rows(tokenizer: str, graph: LayerGraph, counts: tuple[CountedText, ...]) -> Iterator[VocabularyRow]:
    params = count_params(graph)
    alone = VocabularyRow(
        tokenizer=tokenizer,
        vocab_size=graph.model.text.embedding.vocab_size,
        params=params.total,
        active_params=params.active,
        vocabulary_params=params.by_part.get("embedding", 0) + params.by_part.get("head", 0),
        flops_per_token=count_flops(graph, context=1, batch=1).forward_per_token,
    )
    own = [each for each in counts if each.tokenizer == tokenizer]
    if not own:
        yield alone
    cache = plan_cache(graph, engine("ideal"), dtype="bf16", context=1, batch=1)
    for each in own:
        share = each.num_tokens / each.num_bytes
        update = {
            "text": each.text,
            "num_bytes": each.num_bytes,
            "num_tokens": each.num_tokens,
            "tokens_per_byte": share,
            "flops_per_byte": share * alone.flops_per_token,
            "kv_bytes_per_byte": share * cache.bytes_per_token_unbounded,
        }
        yield alone.model_copy(update=update)
