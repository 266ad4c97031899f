"""Published facts beside the mathematics: licence, languages, dates, modalities, evaluations."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import AsTuple, Size, Spec
from l4spec.spec.header import located

Words = Annotated[str, Field(min_length=1, max_length=300)]
Day = Annotated[str, Field(pattern=r"^[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$")]
"""A year, a month of it or a day: `2024`, `2024-08`, `2025-04-05`."""
MOST_TOKENS = 10**18
AllWords = Annotated[tuple[Words, ...], AsTuple]


class ImageCount(Spec):
    """Number of images that the publisher allows in one sequence, and the conditions of that number."""

    count: Size
    """Images, or stills of a clip."""
    conditions: Words
    """Conditions of the number: in pre-training, after post-training, tested."""
    source: Words | None = None
    """Publication of this number; null for the `source` of all."""


class PublishedScore(Spec):
    """One published score."""

    benchmark: Words
    """Name of the benchmark, with its part or direction."""
    score: Annotated[float, Field(ge=0)]
    """The score in the unit of `metric`."""
    metric: Words
    """Metric of the score: accuracy in percent, chrF, pass@1."""
    checkpoint: Literal["pre-trained", "instruction-tuned"] | None = None
    """Evaluated weights; null if unpublished."""
    conditions: Words | None = None
    """Shots, dates of the tasks, number format, who ran it."""
    context: Size | None = None
    """Input length in tokens, for scores at one length."""
    contradicts_context: bool = False
    """True if the score contradicts the advertised context: the model fails the task at much shorter lengths."""
    source: Words | None = None
    """Publication of this score; null for the `source` of all."""

    @model_validator(mode="after")
    def _length_is_named(self) -> Self:
        if self.contradicts_context and self.context is None:
            raise located(("contradicts_context",), "needs `context`: the length at which the score was measured")
        return self


class About(Spec):
    """Published facts about a model; unknown ones are left out."""

    source: Words
    """Source of every entry without a source of its own."""
    released: Day | None = None
    """Day of the release; null for a model that was never released."""
    announced: Day | None = None
    """Day of the announcement of a model that was never released."""
    license: Words | None = None
    """Name of the licence."""
    license_url: Words | None = None
    """URL of the licence's text."""
    languages: AllWords = ()
    """Languages that the publisher supports."""
    pretraining_languages: Size | None = None
    """Number of languages in the training data."""
    inputs: AllWords = ()
    """Input modalities: text, image."""
    outputs: AllWords = ()
    """Output modalities: text, code."""
    knowledge_cutoff: Day | None = None
    """Date of the newest training data."""
    training_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    """Tokens of the pre-training."""
    advertised_context: Size | None = None
    """Longest input that the publisher advertises, in tokens."""
    images: Annotated[tuple[ImageCount, ...], AsTuple] = ()
    """Images per sequence, as published."""
    evaluations: Annotated[tuple[PublishedScore, ...], AsTuple] = ()
    """Published scores, the publisher's and others'."""

    @model_validator(mode="after")
    def _contradicts_something(self) -> Self:
        for index, each in enumerate(self.evaluations):
            if each.contradicts_context and not (each.context or 0) < (self.advertised_context or 0):
                message = "needs an `advertised_context` that is longer than the length of the score"
                raise located(("evaluations", index, "contradicts_context"), message)
        return self


__all__ = ["About", "ImageCount", "PublishedScore"]
