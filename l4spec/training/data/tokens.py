"""Tokenizers of a recipe: bytes, byte pairs trained on its own text, or an existing tokenizer file."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from l4spec.errors import UserError
from l4spec.spec.recipe.data import BpeTokens, ByteTokens, FileTokens

LLAMA4_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>")
"""Llama 4's special tokens for text and dialogues (llama-models, models/llama4/tokenizer.py)."""
END_OF_TEXT = "<|end_of_text|>"
IMAGE_MARKS = (
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|patch|>",
)
"""Llama 4's special tokens for images, in an order of ours (llama-models, models/llama4/tokenizer.py)."""


class Codec(ABC):
    """Text to ids and back; `end_id` ends a document."""

    end_id: int
    vocab_size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; the end of a document has none."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of one of `IMAGE_MARKS`; None if the tokenizer has no such token."""


class ByteCodec(Codec):
    """A token for each byte of UTF-8; 256 ends a document, and those after it mark images where there are any."""

    end_id = 256

    def __init__(self, *, sees: bool = False) -> None:
        self.marks = {mark: self.end_id + 1 + index for index, mark in enumerate(IMAGE_MARKS)} if sees else {}
        self.vocab_size = self.end_id + 1 + len(self.marks)

    def encode(self, text: str) -> list[int]:
        """See `Codec`."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """See `Codec`."""
        return bytes(token for token in ids if token < self.end_id).decode(errors="replace")

    def id_of(self, token: str) -> int | None:
        """See `Codec`."""
        return self.marks.get(token)


class LibraryCodec(Codec):
    """A tokenizer of the package `tokenizers`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        end = tokenizer.token_to_id(END_OF_TEXT)
        self.vocab_size = tokenizer.get_vocab_size()
        if end is None:
            raise UserError(f"the tokenizer has no token {END_OF_TEXT}, which ends documents")
        self.end_id = end

    def encode(self, text: str) -> list[int]:
        """See `Codec`."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Codec`."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        """See `Codec`."""
        number: int | None = self.tokenizer.token_to_id(token)
        return number

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        self.tokenizer.save(str(path))


def make_codec(
    spec: ByteTokens | BpeTokens | FileTokens, texts: Iterable[str], folder: Path, *, sees: bool = False
) -> Codec:
    """The tokenizer of a recipe; byte pairs are learned from `texts`. Raises UserError for a missing file or package.

    `sees`: with the tokens that mark images.
    """
    match spec:
        case ByteTokens():
            return ByteCodec(sees=sees)
        case BpeTokens():
            return train_bpe(texts, spec.vocab_size, IMAGE_MARKS if sees else ())
        case FileTokens():
            path = folder / spec.path
            if not path.is_file():
                raise UserError(f"no tokenizer file {spec.path!r} in {folder}")
            return LibraryCodec(_library().Tokenizer.from_file(str(path)))


def train_bpe(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = ()) -> LibraryCodec:
    """Byte-level byte pairs of `vocab_size` tokens in all, with Llama 4's special tokens and `marks`; deterministic."""
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*LLAMA4_SPECIAL, *marks],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return LibraryCodec(tokenizer)


def _library() -> Any:
    try:
        library = import_module("tokenizers")
        for name in ("models", "pre_tokenizers", "decoders", "trainers"):
            import_module(f"tokenizers.{name}")
    except ImportError:
        raise UserError("byte pairs need the package tokenizers", hint="pip install 'l4spec[text]'") from None
    return library
