"""Configs of a language model with towers: it is read alone if no layer kind implements a tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import below, inside
from l4spec.huggingface.passthrough_fields import finish_common
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

Data = dict[str, Any]
_TEXT, _VISION = "text_config", "vision_config"


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower that is read: how its section of a config becomes that of a spec, and back."""

    read: Callable[[Fields, int], Data]
    """From `vision_config` and the width of the text to the section `vision`."""
    write: Callable[[ResolvedModel, RopeStyle], Data]
    """The fields of `vision_config`."""
    read_sections: Callable[[Fields, Data], None]
    """Adds the rotation of image tokens to the section `text`, from `text_config`."""
    write_sections: Callable[[ResolvedModel, Data], Data]
    """The fields of `text_config` with that."""
    names: Mapping[str, str]
    """Its tensors, as in `Naming.renames`."""
    joined: Mapping[str, tuple[str, ...]]
    """Its joined tensors, as in `Naming.joined`."""
    convolutions: tuple[str, ...] = ()
    """Its matrices that are stored as convolutions, as in `Naming.convolutions`."""
    beside_text: bool = False
    """True if published configs have the text's fields beside `vision_config`, not in a section of their own."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The language model inside of a multimodal family: its own family by the `model_type` of `text_config`."""

    texts: Mapping[str, Family]
    """By `model_type`, the first where the config names none."""
    towers: Sequence[str] = ("vision_config",)
    """Sections that are left out, except a `tower` that is read."""
    tower: Tower | None = None

    @property
    def _may_be_flat(self) -> bool:
        return self.tower is not None and self.tower.beside_text

    def read(self, fields: Fields) -> Data:
        """The section `text` of a spec, with a note on omitted parts."""
        usual, family = next(iter(self.texts.items()))
        text = fields.mapping(_TEXT)
        if self._may_be_flat and not fields.has(_TEXT):
            text = _at_the_top(fields)
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
        if self.tower is not None and fields.has("tie_word_embeddings"):  # the class with a head reads it there
            text.data = {**text.data, "tie_word_embeddings": fields.data["tie_word_embeddings"]}
        section = family.read(text)
        text.fix(family.fixed)
        vision = fields.mapping(_VISION) if self.tower is not None else None
        if self.tower is not None and vision is not None:
            return self._with_tower(self.tower, fields, text, family, section, vision)
        left = [name for name in self.towers if fields.has(name)]
        fields.note(
            f"the language model alone: {', '.join(left) or 'other modalities'} are left out, with their weights"
        )
        fields.carry(*self.towers)
        fields.carried[_TEXT] = {"model_type": named, **finish_common(text, family.ignorable)}
        return section

    @staticmethod
    def _with_tower(tower: Tower, fields: Fields, text: Fields, family: Family, section: Data, vision: Fields) -> Data:
        """The sections `text` and `vision`."""
        section["vision"] = tower.read(vision, section["text"]["hidden_size"])
        tower.read_sections(text, section)
        size = section["vision"]["image_size"]
        fields.note(f"images have any sides, and plans count those of {size} x {size} pixels (vision.image_size)")
        fields.carried[_VISION] = finish_common(vision, ())
        named = text.data.get("model_type", family.model_type)
        kept = text.carried if text.read is fields.read else finish_common(text, family.ignorable)
        fields.carried[_TEXT] = {"model_type": named, **kept}
        return section

    def _share(self, fields: Fields, text: Fields) -> None:
        """Apply fields that are at the top alone to the language model too."""
        if self._may_be_flat and text.read is not fields.read:  # saved again by transformers 4: fields twice
            names = (name for name in fields.data if name in text.data and name not in ("model_type", "architectures"))
            fields.read.update(name for name in names if fields.data[name] == text.data[name])
        for name in ("dtype", "torch_dtype", "tie_word_embeddings"):
            fields.carry(name)
            if fields.has(name) and not text.has(name):
                text.data = {**text.data, name: fields.data[name]}

    def write(self, model: ResolvedModel, style: RopeStyle) -> Data:
        """The language model's fields under `text_config`, and those of a tower that is read under `vision_config`."""
        problem: Exception | None = None
        for model_type, family in self.texts.items():
            try:
                text = family.write(model, style)
                if self.tower is None or model.vision is None:
                    return {_TEXT: {"model_type": model_type, **text}}
                text = self.tower.write_sections(model, text)
                tied = {"tie_word_embeddings": model.text.head.tied}
                vision = self.tower.write(model, style)
                return {_TEXT: {"model_type": model_type, **text}, _VISION: vision, **tied}
            except ValueError as error:
                problem = error
        assert problem is not None
        raise problem


def _at_the_top(fields: Fields) -> Fields:
    """The text's fields if they are beside those of the towers; reading one marks it as read in the config."""
    data = {name: value for name, value in fields.data.items() if name not in ("model_type", _VISION)}
    text = Fields(data, {}, fields.file, fields.path, fields.problems, fields.consequences, fields.notes, fields.read)
    text.assumed = fields.assumed
    return text


def language_model(
    model_type: str,
    architecture: str,
    source: str,
    texts: Mapping[str, Family],
    *,
    prefix: str = "language_model.",
    towers: Sequence[str] = ("vision_config",),
    ignorable: Sequence[str] = (),
    tower: Tower | None = None,
) -> Family:
    """A multimodal family of which the language model is read, and a `tower`; `prefix` is before its tensors' names."""
    text, inner = next(iter(texts.values())), LanguageModel(texts, towers, tower)
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
            renames={**renames, **(tower.names if tower else {})},
            joined={
                **{below(prefix, stored): ours for stored, ours in naming.joined.items()},
                **(tower.joined if tower else {}),
            },
            convolutions=tower.convolutions if tower else (),
            heads={below(prefix, stored): ours for stored, ours in naming.heads.items()},
            of_towers=left,
        ),
        ignorable=(*ignorable, "language_model_only"),
        language_model_only=tower is None,
    )
