"""Expert load that somebody measured: how often each expert of each routed layer was chosen."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from l4spec.catalog.entry import Entry, Source
from l4spec.layers.base import AsTuple

Choices = Annotated[tuple[Annotated[int, Field(ge=0, le=2**62)], ...], AsTuple, Field(min_length=1, max_length=4096)]


class ExpertLoadProfile(Entry):
    """Choices of each expert, one row for each routed layer from input to output."""

    source: Source
    num_experts: Annotated[int, Field(ge=1, le=4096)]
    choices: Annotated[tuple[Choices, ...], AsTuple, Field(min_length=1)]

    @model_validator(mode="after")
    def _counts_every_expert(self) -> Self:
        for index, row in enumerate(self.choices):
            if len(row) != self.num_experts or not sum(row):
                raise ValueError(f"layer {index} needs {self.num_experts} counts, some above 0")
        return self
