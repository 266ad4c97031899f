"""Heads other than a language-model head (classification, reward), which an import refuses or notes."""

import re
from collections.abc import Mapping
from typing import Any

from l4spec.errors import Place, Problem
from l4spec.spec.tree import shortened

_LANGUAGE_MODEL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|ForImageTextToText|ForMultimodalLM)$")
_DRAFT = re.compile(r"eagle|medusa|mtp|nextn|draft|dflash|speculator|assistant", re.IGNORECASE)
_OTHER_HEADS = {
    "SequenceClassification": "a classification or reward head",
    "TokenClassification": "a head that classifies tokens",
    "QuestionAnswering": "a head that marks answers",
    "RewardModel": "a reward head",
    "ProcessRewardModel": "a reward head",
    "MaskedLM": "a head for masked tokens",
    "Embedding": "a pooled embedding",
}


def refused_head(config: Mapping[str, Any], file: str) -> Problem | None:
    """The problem if `architectures` names no language model; None for a language model, or without the field.

    Refused are classification and reward heads, embedding models without a head, drafts of speculative decoding, and
    unknown classes.
    """
    named = config.get("architectures")
    if named in (None, []):
        return None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return _problem(file, f"expected a list of class names, found {shortened(named)}")
    name = named[0]
    if _DRAFT.search(name):
        return _problem(file, f"{name[:80]} is a draft for speculative decoding, which needs another model's layers")
    if _LANGUAGE_MODEL.search(name):
        return None
    for ending, head in _OTHER_HEADS.items():
        if ending in name:
            return _problem(file, f"{name[:80]} has {head} where a language model has its lm_head")
    if name.endswith("Model"):
        return _problem(file, f"{name[:80]} has no lm_head: an embedding model, or the body of another")
    return _problem(file, f"{name[:80]} is no class of a language model that is known")


def _problem(file: str, message: str) -> Problem:
    hint = "--ignore architectures reads it as a language model with an lm_head"
    return Problem(message, path="architectures", place=Place(file), hint=hint)
