"""One YAML spec of a model, and four things that agree about it: claims, plan, module and measurement.

graph = l4spec.compile(l4spec.load("scout"))
model = l4spec.build(graph, device="meta")

Nothing is imported before it is used: torch takes seconds, and a package that adds a layer kind must be able to import
`l4spec.layers.base` before its own kind is looked up.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4spec.errors import SpecError as SpecError
from l4spec.errors import UserError as UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph as LayerGraph
    from l4spec.runtime.build import build as build
    from l4spec.runtime.checkpoints import load_checkpoint as load_checkpoint
    from l4spec.runtime.checkpoints import open_model as open_model
    from l4spec.runtime.checkpoints import save_checkpoint as save_checkpoint
    from l4spec.runtime.compiled import compile_step as compile_step
    from l4spec.runtime.parallel.checkpoints import load_sharded as load_sharded
    from l4spec.runtime.parallel.checkpoints import save_hub as save_hub
    from l4spec.runtime.parallel.checkpoints import save_sharded as save_sharded
    from l4spec.runtime.parallel.distribute import distribute as distribute
    from l4spec.runtime.quantize.apply import quantize as quantize
    from l4spec.sharding.layout import Layout as Layout
    from l4spec.spec.model import ModelSpec as ModelSpec
    from l4spec.verification.run_measure import measure as measure

__version__ = "0.1.0"
_LAZY = {
    "l4spec.graph.layer_graph": "LayerGraph",
    "l4spec.runtime.build": "build",
    "l4spec.runtime.checkpoints": "load_checkpoint open_model save_checkpoint",
    "l4spec.runtime.compiled": "compile_step",
    "l4spec.runtime.parallel.checkpoints": "load_sharded save_hub save_sharded",
    "l4spec.runtime.parallel.distribute": "distribute",
    "l4spec.runtime.quantize.apply": "quantize",
    "l4spec.sharding.layout": "Layout",
    "l4spec.spec.model": "ModelSpec",
    "l4spec.verification.run_measure": "measure",
}
"""Modules that the public names are imported from on first access; type checkers read the same from the block above."""
_PLACES = {name: module for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted((*_PLACES, "SpecError", "UserError", "__version__", "compile", "load"))


def load(
    path_or_name: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> "ModelSpec":
    """Read a spec by path or shipped name (`scout`, `tiny/maverick`) and check it.

    A path may also lead to a config.json of Hugging Face, or to the folder of a model: it is imported. A mapping is
    the document itself, as `{"l4spec": 1, "extends": "scout", "name": "mine"}`.
    `overrides` are `path=value` strings as on the command line (`text.parts.moe.num_experts=32`), or values by path.
    Raises SpecError naming every problem with its file, line and column.
    """
    from l4spec.huggingface import opening

    return opening.load(path_or_name, overrides)


def compile(spec: "ModelSpec") -> "LayerGraph":  # noqa: A001 - the stage's name in the field
    """The layer graph of a spec: names resolved, repeats laid out, shapes checked across every edge."""
    from l4spec.huggingface import opening

    return opening.compiled(spec)
