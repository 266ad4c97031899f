"""Configs that hold a language model beside towers which no layer kind says yet: the language model is read alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import below, inside
from l4spec.huggingface.passthrough_fields import finish_common
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

Data = dict[str, Any]
_TEXT = "text_config"


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The language model inside of a multimodal family: its own family by the `model_type` of `text_config`."""

    texts: Mapping[str, Family]
    """By `model_type`, the first where the config names none."""
    towers: Sequence[str] = ("vision_config",)
    """Sections that are left out."""

    def read(self, fields: Fields) -> Data:
        """The section `text` of a spec, with a note of what is left out."""
        usual, family = next(iter(self.texts.items()))
        text = fields.mapping(_TEXT)
        if text is None:
            fields.problem(_TEXT, "missing field")
            fields.read.update(fields.data)
            return {}
        named = text.data.get("model_type", usual)
        family = self.texts.get(named, family) if isinstance(named, str) else family
        text.defaults = family.defaults
        text.data = {
            **{name: text.data[other] for other, name in family.aliases.items() if other in text.data},
            **text.data,
        }
        text.read.update(family.aliases)
        text.expect("model_type", *self.texts) if text.has("model_type") else text.read.add("model_type")
        self._share(fields, text)
        section = family.read(text)
        text.fix(family.fixed)
        left = [name for name in self.towers if fields.has(name)]
        fields.note(
            f"the language model alone: {', '.join(left) or 'other modalities'} are left out, with their weights"
        )
        fields.carry(*self.towers)
        fields.carried[_TEXT] = {"model_type": named, **finish_common(text, family.ignorable)}
        return section

    @staticmethod
    def _share(fields: Fields, text: Fields) -> None:
        """What is written at the top alone holds for the language model too."""
        for name in ("dtype", "torch_dtype", "tie_word_embeddings"):
            fields.carry(name)
            if fields.has(name) and not text.has(name):
                text.data = {**text.data, name: fields.data[name]}

    def write(self, model: ResolvedModel, style: RopeStyle) -> Data:
        """The language model's fields under `text_config`."""
        problem: Exception | None = None
        for model_type, family in self.texts.items():
            try:
                return {_TEXT: {"model_type": model_type, **family.write(model, style)}}
            except ValueError as error:
                problem = error
        assert problem is not None
        raise problem


def language_model(
    model_type: str,
    architecture: str,
    source: str,
    texts: Mapping[str, Family],
    *,
    prefix: str = "language_model.",
    towers: Sequence[str] = ("vision_config",),
    ignorable: Sequence[str] = (),
) -> Family:
    """A multimodal family of which the language model is read; `prefix` is before its tensors' names."""
    text, inner = next(iter(texts.values())), LanguageModel(texts, towers)
    naming = text.naming
    renames: Mapping[str, Any] = inside(prefix, naming.renames)
    left = (r"^(model\.)?(visual|vision_tower|vision_model|multi_modal_projector|mm_projector|audio_tower)\.",)
    return Family(
        model_type,
        architecture,
        source,
        inner.read,
        inner.write,
        replace(
            naming,
            renames=renames,
            joined={below(prefix, stored): ours for stored, ours in naming.joined.items()},
            heads={below(prefix, stored): ours for stored, ours in naming.heads.items()},
            optional=(*naming.optional, *left),
        ),
        ignorable=(*ignorable, "language_model_only"),
        language_model_only=True,
    )
