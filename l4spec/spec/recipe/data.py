"""Training data of a recipe: weighted sources, and the tokenizer."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import AsTuple, Size, Spec
from l4spec.spec.header import located
from l4spec.spec.quantities import Share

Weight = Annotated[float, Field(gt=0, le=1e6)]
Key = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$")]


class ByteTokens(Spec):
    """A token for each byte, and one that ends documents: 257 in all."""

    kind: Literal["bytes"]


class BpeTokens(Spec):
    """Byte pairs learned from the recipe's own text by the `tokenizers` library."""

    kind: Literal["bpe"]
    vocab_size: Annotated[int, Field(ge=258, le=1_000_000)]
    """Tokens in all, the one that ends documents included."""


class FileTokens(Spec):
    """An existing tokenizer file: `tokenizer.json` or `tokenizer.model`."""

    kind: Literal["file"]
    path: str
    """The file, relative to the recipe."""


Tokenizer = Annotated[ByteTokens | BpeTokens | FileTokens, Field(discriminator="kind")]


class SyntheticSource(Spec):
    """Endless synthetic text, the same for the same seed; nothing is downloaded."""

    kind: Literal["synthetic"]
    task: Literal["language", "stories", "arithmetic", "retrieval", "questions", "needles", "pictures"] = "language"
    """`language`: made-up words by a grammar, another language for each `language`; `stories`: English sentences;
    `arithmetic`: sums; `retrieval`: keys with values, one of them asked for; `questions`: dialogues with answers;
    `needles`: letters among sentences, asked for at the end; `pictures`: a shape somewhere on a tile, and its
    caption after it."""
    language: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of the made-up language, or the difficulty of a task."""
    length: Annotated[int, Field(ge=32, le=1 << 20)] | None = None
    """Characters of a document of `needles`; null: 64."""
    pictures: Literal["shown", "blank", "left_out"] = "shown"
    """Of the task `pictures`: as they are; all alike and empty, at the same places; or captions alone."""
    weight: Weight = 1.0
    """Share of the mixture, relative to the other sources."""

    @property
    def has_pictures(self) -> bool:
        """True if there are image tiles among the tokens."""
        return self.task == "pictures" and self.pictures != "left_out"

    @model_validator(mode="after")
    def _only_needles_have_a_length(self) -> Self:
        if self.length is not None and self.task != "needles":
            raise located(("length",), f"{self.task} has no length", "task: needles has")
        return self

    @model_validator(mode="after")
    def _only_pictures_are_hidden(self) -> Self:
        if self.pictures != "shown" and self.task != "pictures":
            raise located(("pictures",), f"the task {self.task} has none", "task: pictures")
        return self


class FileSource(Spec):
    """Text files; an empty line ends a document."""

    kind: Literal["file"]
    files: Annotated[tuple[str, ...], AsTuple, Field(min_length=1)]
    """Paths, relative to the recipe."""
    weight: Weight = 1.0
    """Share of the mixture, relative to the other sources."""

    @property
    def has_pictures(self) -> bool:
        """Always False: text files have no image tiles."""
        return False


class DialogueSource(Spec):
    """Dialogues of your own: a JSON object per line, with `prompt`, `answer` and, for a dpo phase, `rejected`."""

    kind: Literal["dialogues"]
    files: Annotated[tuple[str, ...], AsTuple, Field(min_length=1)]
    """Paths, relative to the recipe."""
    weight: Weight = 1.0
    """Share of the mixture, relative to the other sources."""

    @property
    def has_pictures(self) -> bool:
        """Always False: dialogues have no image tiles."""
        return False


class DescribedSource(Spec):
    """Data that is only described: counted in the plan, replaced by synthetic text when a miniature is run."""

    kind: Literal["described"]
    description: str
    """Description of the data."""
    image_share: Share = 0.0
    """Share of its tokens that are image patches; a run of a miniature has pictures with captions instead."""
    weight: Weight = 1.0
    """Share of the mixture, relative to the other sources."""

    @property
    def has_pictures(self) -> bool:
        """True if there are image tiles among the tokens."""
        return self.image_share > 0


Source = Annotated[SyntheticSource | FileSource | DialogueSource | DescribedSource, Field(discriminator="kind")]


class DataSpec(Spec):
    """Sources and tokenizer."""

    tokenizer: Tokenizer = ByteTokens(kind="bytes")
    """Tokenizer of the text."""
    sources: Annotated[dict[Key, Source], Field(min_length=1, max_length=256)]
    """Sources by a name of your own."""
    held_out: Share = 0.05
    """Share of a file's documents that is held out for evaluation; synthetic text draws other documents for it."""
    evaluate_sequences: Size = 16
    """Held-out sequences after each phase, for bits per byte."""

    @property
    def marks_images(self) -> bool:
        """True if the vocabulary needs the tokens that mark images."""
        return any(
            source.has_pictures or (source.kind == "synthetic" and source.task == "pictures")
            for source in self.sources.values()
        )
