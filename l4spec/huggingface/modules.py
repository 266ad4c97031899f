"""Modules of multi-token prediction in configs: which fields count them, and when a spec declares them."""

from collections.abc import Mapping, Sequence
from typing import Any

from l4spec.huggingface.fields import Fields
from l4spec.huggingface.text import Data
from l4spec.spec.resolve import ResolvedModel

MODULE_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")
"""Fields that count them, each in some families."""


def with_modules(fields: Fields, spec: Data, count_field: str, block: Data, *, copies: bool, most: int = 64) -> Data:
    """The spec, with as many modules of `block` as the field counts; without any where they are not known to be so.

    `copies`: checkpoints store embedding and head again. Above `most` the family's modules share layers, of which ours
    have their own. Modules of a model with a tied head (Qwen's small ones) are left out.
    """
    count = fields.count(count_field) if fields.has(count_field) else 0
    fields.carry(count_field)
    if not 0 < count <= most or spec["text"].get("tie_embeddings"):
        return spec
    tables = {"embedding": "copy", "head": "copy"} if copies else {}
    module = {"num_modules": count, "block": {name: part for name, part in block.items() if name != "repeat"}}
    return {**spec, "text": {**spec["text"], "mtp": {**module, **tables}}}


def written_modules(model: ResolvedModel, count_field: str) -> Data:
    """The field of a model that declares modules."""
    return {count_field: model.text.mtp.num_modules} if model.text.mtp else {}


def modules_left_out(config: Mapping[str, Any], sections: Sequence[str] = ("text_config",)) -> str | None:
    """One line on modules that a config counts; None if it counts none. For a spec that declares none."""
    inner = (config.get(section) for section in sections)
    for fields in (config, *(given for given in inner if isinstance(given, Mapping))):
        for name in MODULE_COUNTS:
            count = fields.get(name)
            if type(count) is int and count > 0:
                return f"left out: modules of multi-token prediction, with their weights ({name} {count})"
    return None
