"""Type of a model family: how its config becomes a spec, and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import Naming
from l4spec.layers.base import LayerSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

Reader = Callable[[Fields], dict[str, Any]]
"""From a config to the sections `text` and `vision` of a spec; problems are noted in the fields."""
Writer = Callable[[ResolvedModel, RopeStyle], dict[str, Any]]
"""From a model to the config's fields of its mathematics. The export finds differences by reading them again."""
S = TypeVar("S", bound=LayerSpec)


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type` of Hugging Face transformers."""

    model_type: str
    architecture: str
    """Class that `architectures` names."""
    source: str
    """File of huggingface/transformers that holds the mathematics."""
    read: Reader
    write: Writer
    naming: Naming
    """The names of its tensors in checkpoints."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the config class for fields that are left out."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of a field."""
    fixed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Fields that repeat a constant property of the family, with their only accepted values."""
    language_model_only: bool = False
    """True if towers beside the language model are left out."""
    ignorable: Sequence[str] = ()
    """Fields of this family without effect on the forward pass."""


def first(blocks: Sequence[ResolvedBlock], kind: type[S]) -> S | None:
    """The first attention or feed-forward layer of a kind."""
    parts = (part.spec for block in blocks for part in (block.attention, block.ffn) if part is not None)
    return next((spec for spec in parts if isinstance(spec, kind)), None)


def needed(blocks: Sequence[ResolvedBlock], kind: type[S], what: str) -> S:
    """As `first`; SpecError when there is none."""
    spec = first(blocks, kind)
    if spec is None:
        raise SpecError([Problem(f"has no {what}", path="text.parts")])
    return spec
