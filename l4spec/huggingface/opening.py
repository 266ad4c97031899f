"""A spec by shipped name or path, where the path may also be a config.json or the folder of a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface.config_file import is_config
from l4spec.spec.document import Document, load_document, load_mapping, load_text
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.files import label
from l4spec.spec.model import ModelSpec
from l4spec.spec.overrides import written

Written = str | Path | Mapping[str, Any]
"""A spec: a shipped name, a path, or the document itself as nested mappings and lists."""
Model = Written | ModelSpec | LayerGraph
"""Whatever names a model."""


def open_document(model: Written, overrides: Sequence[str] = ()) -> tuple[Document, tuple[str, ...]]:
    """(the document, notes of the import): a config of Hugging Face is imported, anything else read as a spec.

    A folder means its spec.yaml, or else its config.json. Raises SpecError as `load_document` and `import_file` do.
    """
    if isinstance(model, Mapping):
        return load_mapping(model, overrides), ()
    path_or_name, path = model, Path(model)
    if _is_config(path):
        from l4spec.huggingface.importing import import_file

        imported = import_file(path)
        return load_text(imported.yaml, label(path), overrides), imported.notes
    spec = path / "spec.yaml"
    return load_document(spec if _is_file(spec) else path_or_name, overrides), ()


def load(model: Written, overrides: Sequence[str] | Mapping[str, Any] = ()) -> ModelSpec:
    """See `l4spec.load`."""
    if not isinstance(model, str | Path | Mapping):
        raise UserError(f"expected a spec, found {type(model).__name__}", hint="give a shipped name, a path or a dict")
    return parse_as(open_document(model, written(overrides))[0], ModelSpec)


def compiled(spec: ModelSpec) -> LayerGraph:
    """See `l4spec.compile`."""
    from l4spec.graph.build import build_graph
    from l4spec.spec.resolve import resolve

    if spec.stored_as is not None:
        from l4spec.quantization.published import require_known

        require_known(spec)
    return build_graph(resolve(spec))


def graph_of(model: object) -> LayerGraph:
    """The layer graph of whatever names a model: a shipped name, a path, a document, a spec or the graph itself.

    Raises UserError for anything else, and as `load` and `compiled` do.
    """
    if isinstance(model, LayerGraph):
        return model
    if isinstance(model, str | Path | Mapping):
        return compiled(load(model))
    if isinstance(model, ModelSpec):
        return compiled(model)
    hint = "give a shipped name, a path, a spec of l4spec.load or a graph of l4spec.compile"
    raise UserError(f"expected a model, found {type(model).__name__}", hint=hint)


def _is_config(path: Path) -> bool:
    try:
        return is_config(path)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
