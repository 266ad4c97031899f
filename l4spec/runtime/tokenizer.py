"""Text to token ids and back, with the tokenizer file that is beside a checkpoint. Imports no torch.

A Hugging Face `tokenizer.json` needs the package `tokenizers`, a tiktoken model file (`tokenizer.model`) the package
`tiktoken`; both come with `pip install 'l4spec[text]'`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, UserError
from l4spec.runtime.tiktoken_file import (
    BEGIN_OF_TEXT,
    MAX_FILE_BYTES,
    PATTERN,
    STOP_TOKENS,
    cut_for_tiktoken,
    read_ranks,
    special_ids,
)
from l4spec.runtime.tokenizer_bounds import require_bounded
from l4spec.spec.files import read_utf8

HUGGING_FACE = "tokenizer.json"
TIKTOKEN = "tokenizer.model"
_HEADER_START, _HEADER_END, _END_OF_TURN = "<|header_start|>", "<|header_end|>", "<|eot|>"
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MAX_UNFINISHED = 8
"""Most tokens of an incomplete character; after these the bytes are taken as invalid text."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue; `role` is `system`, `user`, `assistant` or `ipython` (a tool's output)."""

    role: str
    content: str
    images: tuple[int, ...] = ()
    """Token ids of images, which are before the content."""


class TextTokenizer(ABC):
    """Tokenizer. In `encode`, the spelling of a special token is plain text unless `special` is true."""

    @abstractmethod
    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text, without a begin-of-text token."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of a special token by its spelling."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids."""

    def encode_prompt(self, text: str, images: tuple[int, ...] = ()) -> list[int]:
        """Token ids of a prompt: a begin-of-text token if the tokenizer has one, `images`, and the text."""
        begin, ids = self.id_of(BEGIN_OF_TEXT), self._encode_prompt(text)
        return [*ids[:1], *images, *ids[1:]] if begin is not None and ids[:1] == [begin] else [*images, *ids]

    def _encode_prompt(self, text: str) -> list[int]:
        begin = self.id_of(BEGIN_OF_TEXT)
        return ([] if begin is None else [begin]) + self.encode(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a dialogue in Llama 4's format, up to the header of the assistant's answer.

        Each turn is `<|header_start|>role<|header_end|>`, a blank line, the content and `<|eot|>`. Raises UserError if
        the tokenizer lacks these tokens.
        """
        names = (BEGIN_OF_TEXT, _HEADER_START, _HEADER_END, _END_OF_TURN)
        special_ids = {name: self.id_of(name) for name in names}
        missing = [name for name, number in special_ids.items() if number is None]
        if missing:
            raise UserError(f"this tokenizer has no Llama 4 chat format: it lacks {', '.join(missing)}")
        begin, start, end, turn = (number for number in special_ids.values() if number is not None)
        ids = [begin]
        for message in messages:
            ids += [start, *self.encode(message.role), end, *self.encode("\n\n")]
            ids += [*message.images, *self.encode(message.content), turn]
        return [*ids, start, *self.encode("assistant"), end, *self.encode("\n\n")]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens that end an answer of Llama 4."""
        return tuple(number for token in STOP_TOKENS if (number := self.id_of(token)) is not None)

    def stream(self, ids: Iterator[int]) -> Iterator[str]:
        """Decode ids incrementally: pieces of text of complete characters, which together are the whole text."""
        known: list[int] = []
        done = 0
        for number in ids:
            known.append(number)
            before, after = self.decode(known[:done]), self.decode(known)
            waits = after.endswith(_UNFINISHED) and len(known) - done < _MAX_UNFINISHED
            if waits or not after.startswith(before):
                continue
            yield after[len(before) :]
            known, done = known[done:], len(known) - done
        before, after = self.decode(known[:done]), self.decode(known)
        yield after[len(before) :]


class HuggingFaceTokenizer(TextTokenizer):
    """A `tokenizer.json`. Its chat template is not run; dialogues are in Llama 4's format."""

    def __init__(self, path: Path) -> None:
        library = _library("tokenizers")
        text = read_utf8(path, MAX_FILE_BYTES)
        self._place = Place(path.name)
        with self._refusals("is no tokenizer"):
            require_bounded(text)
            self._tokenizer: Any = library.Tokenizer.from_str(text)

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """Convert the library's errors to UserError; a panic of its native code is not a Python Exception."""
        try:
            yield
        except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError([Problem(f"{what}: {reason}", place=self._place)]) from None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """As the base class says."""
        with self._refusals("cannot encode this text"):
            self._tokenizer.encode_special_tokens = not special
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text after the file's own post-processor, which usually prepends a begin-of-text token."""
        with self._refusals("cannot encode this text"):
            self._tokenizer.encode_special_tokens = True
            return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer.decode`; ids outside the vocabulary have no text."""
        with self._refusals("cannot decode these ids"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def id_of(self, token: str) -> int | None:
        """As the base class says."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    @property
    def vocab_size(self) -> int:
        """As the base class says."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))


class TiktokenTokenizer(TextTokenizer):
    """A tiktoken model file with Llama 4's 2,048 special tokens after its ranks."""

    def __init__(self, path: Path) -> None:
        library = _library("tiktoken")
        ranks = read_ranks(path)
        self._special: Mapping[str, int] = special_ids(len(ranks))
        self._names = {number: name for name, number in self._special.items()}
        self._encoding: Any = library.Encoding(
            name=path.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=dict(self._special)
        )

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """As the base class says."""
        allowed = set(self._special) if special else set()
        pieces = [text] if special else cut_for_tiktoken(text)
        encoded = (self._encoding.encode(piece, allowed_special=allowed, disallowed_special=()) for piece in pieces)
        return [number for ids in encoded for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer.decode`; ids outside the vocabulary have no text."""
        first_special = min(self._names)
        return str(self._encoding.decode([number for number in ids if 0 <= number < first_special]))

    def id_of(self, token: str) -> int | None:
        """As the base class says."""
        return self._special.get(token)

    @property
    def vocab_size(self) -> int:
        """As the base class says."""
        return int(self._encoding.n_vocab)


def open_tokenizer(path: Path | str) -> TextTokenizer:
    """The tokenizer of a file: a `.json` of Hugging Face, or any other name for a tiktoken model file.

    Raises UserError when it cannot be read, or when the package that reads it is not installed.
    """
    path = Path(path)
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else TiktokenTokenizer(path)


def find_tokenizer(directory: Path) -> Path | None:
    """The tokenizer file in a checkpoint directory: `tokenizer.json`, or else `tokenizer.model`."""
    return next((directory / name for name in (HUGGING_FACE, TIKTOKEN) if (directory / name).is_file()), None)


def stop_ids_of(directory: Path) -> tuple[int, ...]:
    """The `eos_token_id`s of a checkpoint directory's generation_config.json, or else of its config.json."""
    from l4spec.runtime.checkpoints.headers import read_json  # its package imports torch

    for name in ("generation_config.json", "config.json"):
        data = read_json(directory / name) if (directory / name).is_file() else {}
        for holder in (data, data.get("text_config")) if isinstance(data, dict) else ():
            stop_ids = holder.get("eos_token_id") if isinstance(holder, dict) else None
            ids = stop_ids if isinstance(stop_ids, list) else [stop_ids]
            if ids and all(type(number) is int and number >= 0 for number in ids):
                return tuple(ids)
    return ()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"this tokenizer file needs the package {name}", hint="pip install 'l4spec[text]'") from None
