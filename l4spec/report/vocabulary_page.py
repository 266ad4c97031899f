"""The rows of `l4spec vocabulary` as a table."""

from collections.abc import Iterator

from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import count, flops, whole
from planners.sweep.vocabularies import MULTIPLE, VocabularyRow, VocabularyTable

_HEADERS = ("vocabulary", "tokens", "parameters", "of it vocabulary", "active", "FLOPs/token")
_OF_TEXT = ("text", "tokens/byte", "FLOPs/byte", "KV/byte")


def vocabulary_page(table: VocabularyTable) -> Page:
    """A row per vocabulary and text, then the cost of a text by each vocabulary relative to the first."""
    has_texts = any(row.text is not None for row in table.rows)
    headers = (*_HEADERS, *(_OF_TEXT if has_texts else ()))
    rows = tuple((*_model_cells(row), *(_text_cells(row) if has_texts else ())) for row in table.rows)
    notes = (*_against_the_first(table), _NOTE)
    align = "lrrrrr" + ("lrrr" if has_texts else "")
    return Section("", (Table(headers, rows, align, keys=1),)), Section("", (Lines(notes),))


_NOTE = (
    f"Tables of tokenizers have a multiple of {MULTIPLE} rows. FLOPs are those of a forward pass without attention, "
    "KV that of every layer in bf16."
)


def _model_cells(row: VocabularyRow) -> tuple[str, ...]:
    return (
        row.tokenizer,
        whole(row.vocab_size),
        count(row.params),
        count(row.vocabulary_params),
        count(row.active_params),
        flops(row.flops_per_token),
    )


def _text_cells(row: VocabularyRow) -> tuple[str, ...]:
    if row.text is None or row.tokens_per_byte is None:
        return ("-",) * len(_OF_TEXT)
    per_byte = (flops(round(row.flops_per_byte or 0)), f"{row.kv_bytes_per_byte or 0:,.0f} B")
    return (row.text, f"{row.tokens_per_byte:.4f}", *per_byte)


def _against_the_first(table: VocabularyTable) -> Iterator[str]:
    """Change of tokens and FLOPs by each further vocabulary, for the same text."""
    first: dict[str, VocabularyRow] = {}
    for row in table.rows:
        if row.text is None or not row.tokens_per_byte:
            continue
        base = first.setdefault(row.text, row)
        if base is not row and base.tokens_per_byte and base.flops_per_byte and row.flops_per_byte:
            tokens = row.tokens_per_byte / base.tokens_per_byte - 1
            work = row.flops_per_byte / base.flops_per_byte - 1
            yield (
                f"{row.text}: {row.tokenizer} makes {100 * tokens:+.1f} % tokens of what {base.tokenizer} does, and a "
                f"byte takes {100 * work:+.1f} % FLOPs."
            )
