"""Hugging Face configs, both ways, as plain data: neither torch nor transformers is needed.

spec = l4spec.huggingface.import_file("config.json").spec
config = l4spec.huggingface.export_config(spec)

An exported config is equal to the imported one in every field that the family's mathematics reads, in the number
format, and in every field without effect that the import carried along (token ids, architectures, training settings).
Fields that the config left to transformers are written out, and class names of classification heads are dropped.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l4spec.huggingface.exporting import export_config
    from l4spec.huggingface.families import FAMILIES
    from l4spec.huggingface.importing import ImportedSpec, import_config, import_file

__all__ = ["FAMILIES", "ImportedSpec", "export_config", "import_config", "import_file"]
_PLACES = {"FAMILIES": "families", "export_config": "exporting"}


def __getattr__(name: str) -> Any:
    """Families are imported on first use, because every plan imports this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'importing')}"), name)
