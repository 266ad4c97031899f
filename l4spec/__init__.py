"""One YAML spec of a model, and four things that agree about it: claims, plan, module and measurement.

graph = l4spec.compile(l4spec.load("scout"))
model = l4spec.build(graph, device="meta")

Nothing is imported before it is used: torch takes seconds, and a package that adds a layer kind must be able to import
`l4spec.layers.base` before its own kind is looked up.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4spec.errors import SpecError, UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from l4spec.runtime.build import build
    from l4spec.runtime.checkpoints import load_checkpoint, open_model, save_checkpoint
    from l4spec.runtime.compiled import compile_step
    from l4spec.runtime.parallel.checkpoints import load_sharded, save_hub, save_sharded
    from l4spec.runtime.parallel.distribute import distribute
    from l4spec.runtime.quantize.apply import quantize
    from l4spec.sharding.layout import Layout
    from l4spec.spec.model import ModelSpec
    from l4spec.verification.run_measure import measure

__version__ = "0.1.0"
__all__ = [
    "LayerGraph",
    "Layout",
    "ModelSpec",
    "SpecError",
    "UserError",
    "__version__",
    "build",
    "compile",
    "compile_step",
    "distribute",
    "load",
    "load_checkpoint",
    "load_sharded",
    "measure",
    "open_model",
    "quantize",
    "save_checkpoint",
    "save_hub",
    "save_sharded",
]
_PLACES = {
    "LayerGraph": "l4spec.graph.layer_graph",
    "Layout": "l4spec.sharding.layout",
    "ModelSpec": "l4spec.spec.model",
    "build": "l4spec.runtime.build",
    "compile_step": "l4spec.runtime.compiled",
    "distribute": "l4spec.runtime.parallel.distribute",
    "load_checkpoint": "l4spec.runtime.checkpoints",
    "load_sharded": "l4spec.runtime.parallel.checkpoints",
    "save_hub": "l4spec.runtime.parallel.checkpoints",
    "save_sharded": "l4spec.runtime.parallel.checkpoints",
    "open_model": "l4spec.runtime.checkpoints",
    "measure": "l4spec.verification.run_measure",
    "quantize": "l4spec.runtime.quantize.apply",
    "save_checkpoint": "l4spec.runtime.checkpoints",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for by its public name."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> "ModelSpec":
    """Read a spec by path or shipped name (`scout`, `tiny/maverick`) and check it.

    A path may also lead to a config.json of Hugging Face, or to the folder of a model: it is imported.
    `overrides` are `path=value` strings as on the command line (`text.parts.moe.num_experts=32`).
    Raises SpecError naming every problem with its file, line and column.
    """
    from l4spec.huggingface.opening import open_document
    from l4spec.spec.document_kinds import parse_as
    from l4spec.spec.model import ModelSpec

    return parse_as(open_document(path_or_name, overrides)[0], ModelSpec)


def compile(spec: "ModelSpec") -> "LayerGraph":  # noqa: A001 - the stage's name in the field
    """The layer graph of a spec: names resolved, repeats laid out, shapes checked across every edge."""
    from l4spec.graph.build import build_graph
    from l4spec.spec.resolve import resolve

    if spec.stored_as is not None:
        from l4spec.quantization.published import require_known

        require_known(spec)
    return build_graph(resolve(spec))
