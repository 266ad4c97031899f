"""Tiktoken model files, with Llama 4's pattern and its 2,048 special tokens.

Source: meta-llama/llama-models `models/llama4/tokenizer.py`, for the ids, the pattern (tiktoken's o200k) and the limits
within which tiktoken's regular expressions do not overflow.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path

from l4spec.errors import Place, Problem, UserError

BEGIN_OF_TEXT = "<|begin_of_text|>"
STOP_TOKENS = ("<|end_of_text|>", "<|eom|>", "<|eot|>")
NUM_SPECIAL = 2048
MAX_FILE_BYTES = 100_000_000
_WORD_END = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORD_END}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD_END}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Pattern of the words that text is cut into before bytes are merged."""
_LONGEST_TEXT, _LONGEST_RUN = 400_000, 25_000
_RUN = re.compile(rf"\S{{{_LONGEST_RUN}}}(?=\S)|\s{{{_LONGEST_RUN}}}(?=\s)")


def special_ids(first: int) -> dict[str, int]:
    """Llama 4's special tokens in order, the first with the id `first` (200,000 in the released file)."""
    names = [*_special_names()]
    names += [f"<|reserved_special_token_{i}|>" for i in range(NUM_SPECIAL - len(names))]
    return {name: first + i for i, name in enumerate(names)}


def _special_names() -> Iterator[str]:
    yield from (BEGIN_OF_TEXT, "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
    yield from ("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>")
    yield from _reserved("text_post_train", 0, 6)
    yield from ("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>")
    yield from _reserved("text_post_train", 8, 69)
    yield from ("<|image_start|>", "<|image_end|>")
    yield from _reserved("vision", 0, 2)
    yield from ("<|tile_x_separator|>", "<|tile_y_separator|>")
    yield from _reserved("vision", 2, 6)
    yield "<|image|>"
    yield from _reserved("vision", 6, 7)
    yield "<|patch|>"
    yield from _reserved("vision", 7, 1048)
    yield from _reserved("reasoning", 0, 8)
    yield from ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")


def _reserved(name: str, start: int, stop: int) -> Iterator[str]:
    return (f"<|{name}_reserved_special_token_{i}|>" for i in range(start, stop))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte strings by their rank, from lines of `base64 rank`. Raises UserError naming the lines that are none."""
    place = Place(str(path)[:200])
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise UserError([Problem("expected a tokenizer file of at most 100 MB", place=place)])
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError([Problem(f"cannot be read: {error.strerror}", place=place)]) from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if line:
            token, rank = _rank(line, Place(place.file, number))
            if token in ranks or rank != len(ranks):
                problem = Problem(
                    f"expected a new token of rank {len(ranks)}, found rank {rank}", place=Place(place.file, number)
                )
                raise UserError([problem])
            ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(
            [Problem(f"is no tokenizer file: {len(missing)} of 256 single bytes have no rank", place=place)]
        )
    return ranks


def _rank(line: bytes, place: Place) -> tuple[bytes, int]:
    token, _, rank = line.partition(b" ")
    try:
        if rank.isdigit() and len(rank) < 10:
            return base64.b64decode(token, validate=True), int(rank)
    except binascii.Error:
        pass
    raise UserError([Problem("expected a token in base64, a space and its rank", place=place)])


def cut_for_tiktoken(text: str) -> Iterator[str]:
    """The text in pieces that tiktoken can encode: at most 400,000 characters, 25,000 of them without a change
    between white space and other characters."""
    for start in range(0, len(text), _LONGEST_TEXT):
        chunk, done = text[start : start + _LONGEST_TEXT], 0
        for match in _RUN.finditer(chunk):
            yield chunk[done : match.end()]
            done = match.end()
        yield chunk[done:]
