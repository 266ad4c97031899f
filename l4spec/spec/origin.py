"""Origin of an imported spec: the fields of its Hugging Face config that export writes back."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from l4spec.layers.base import Spec

RopeStyle: TypeAlias = Literal["rope_parameters", "rope_scaling", "rope_scaling_type"]
"""Form of rotary positions in a config: `rope_parameters` since transformers 5; before it, `rope_theta` beside
`rope_scaling`, with the kind under `rope_type` or the older `type`.
"""


class HuggingFaceSpec(Spec):
    """For `l4spec export`: the model family, and what its config carries besides the mathematics."""

    model_type: Annotated[str, Field(min_length=1, max_length=60)]
    """Family to export to; found by trying when left out or when the model does not fit it any more."""
    rope_style: RopeStyle = "rope_scaling"
    """Form of rotary positions in the config."""
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    """Fields that change no number of the forward pass, as token ids; written back as they are."""


__all__ = ["HuggingFaceSpec", "RopeStyle"]
