"""Origin of an imported spec: the fields of its Hugging Face config that export writes back."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from l4spec.layers.base import Spec

RopeStyle: TypeAlias = Literal["rope_parameters", "rope_scaling", "rope_scaling_type"]
"""Form of rotary positions in a config: `rope_parameters` since transformers 5; before it, `rope_theta` beside
`rope_scaling`, with the kind under `rope_type` or the older `type`.
"""


class HuggingFaceSpec(Spec):
    """Data for `l4spec export`: the model family, and config fields without effect on the forward pass."""

    model_type: Annotated[str, Field(min_length=1, max_length=60)]
    """Family to export to; families are tried in turn when it is left out or the model does not fit it any more."""
    rope_style: RopeStyle = "rope_scaling"
    """Form of rotary positions in the config."""
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    """Fields that change no number of the forward pass, such as token ids; written back unchanged."""


__all__ = ["HuggingFaceSpec", "RopeStyle"]
