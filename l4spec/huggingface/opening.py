"""A spec by shipped name or path, where the path may also be a config.json or the folder of a model."""

from collections.abc import Sequence
from pathlib import Path

from l4spec.huggingface.config_file import is_config
from l4spec.spec.document import Document, load_document, load_text
from l4spec.spec.files import label


def open_document(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Document, tuple[str, ...]]:
    """(the document, notes of the import): a config of Hugging Face is imported, anything else read as a spec.

    A folder means its spec.yaml, or else its config.json. Raises SpecError as `load_document` and `import_file` do.
    """
    path = Path(path_or_name)
    if _is_config(path):
        from l4spec.huggingface.importing import import_file

        imported = import_file(path)
        return load_text(imported.yaml, label(path), overrides), imported.notes
    spec = path / "spec.yaml"
    return load_document(spec if _is_file(spec) else path_or_name, overrides), ()


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
