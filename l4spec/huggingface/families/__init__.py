"""One file per model family: reading and writing its config, and the names of tensors in its checkpoints.

A file with a `FAMILY` is found by its being here. An export tries the families of `_FIRST` in order, then the others by
name, those with towers at the end.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from l4spec.huggingface.family import Family

_FIRST = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "deepseek_v3",
    "llama4_text",
    "llama4",
)


def _families() -> Iterator[Family]:
    names = {module.name for module in iter_modules(__path__)} - {"refused"}
    for name in (*_FIRST, *sorted(names - set(_FIRST))):
        family = import_module(f"{__name__}.{name}").FAMILY
        assert isinstance(family, Family)
        yield family


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in sorted(_families(), key=lambda family: bool(family.naming.of_towers))}
)
"""Every family by its model_type, in the order in which an export tries them."""
