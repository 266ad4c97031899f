"""One file per model family: what its config says, and how a spec says it."""

from collections.abc import Mapping
from types import MappingProxyType

from l4spec.huggingface.families import (
    deepseek_v3,
    gemma2,
    llama,
    llama4,
    llama4_text,
    mistral,
    mixtral,
    qwen2,
    qwen3,
    qwen3_moe,
)
from l4spec.huggingface.family import Family

_ROOMS = (llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, gemma2, deepseek_v3, llama4_text, llama4)
FAMILIES: Mapping[str, Family] = MappingProxyType({room.FAMILY.model_type: room.FAMILY for room in _ROOMS})
"""Every family by its model_type, in the order in which an export tries them."""
