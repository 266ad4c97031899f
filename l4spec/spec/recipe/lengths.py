"""Retrieval tests by length of the text (needle in a haystack)."""

from typing import Annotated

from pydantic import Field

from l4spec.layers.base import AsTuple, Spec
from l4spec.spec.quantities import Tokens
from l4spec.spec.recipe.data import Key


class LengthTest(Spec):
    """After each phase, the share of right answers on held-out `needles` documents of each length."""

    source: Key
    """A synthetic source of `needles` in `data.sources`; its own length does not count here."""
    tokens: Annotated[tuple[Annotated[Tokens, Field(ge=32)], ...], AsTuple, Field(min_length=1, max_length=64)]
    """Lengths of documents, ascending."""
    documents: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Documents of each length; each asks five times."""
