"""The reader of torch's sharded files that unpickles nothing but a checkpoint's own description."""

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from l4spec.errors import Place, Problem, UserError

METADATA = ".metadata"
_MOST_BYTES = 1 << 30
_CHECKPOINT = "torch.distributed.checkpoint"
_ALLOWED = {
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size", "bfloat16", "float16", "float32", "float64", "int64"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}
"""What a description is made of, by module; `pathlib` for the place where it was written."""


def _joined(*parts: str) -> str:
    return "/".join(map(str, parts))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        if module.startswith("pathlib"):
            return _joined  # a path of another system could not be made here
        return super().find_class(module, name)


class TrustedReader(FileSystemReader):
    """Torch's own reader, of a folder that nobody vouches for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._directory = directory

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the folder. Raises UserError for anything else."""
        path, place = self._directory / METADATA, Place(METADATA)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise UserError([Problem("is larger than any description of a checkpoint", place=place)])
            with path.open("rb") as file:
                metadata = _Unpickler(file).load()
        except OSError as error:
            raise UserError([Problem(f"cannot be read: {error.strerror}", place=place)]) from None
        except UserError:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, pickle.UnpicklingError) else "it is truncated or of another kind"
            raise UserError([Problem(f"describes no checkpoint: {reason[:200]}", place=place)]) from None
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise UserError([Problem("describes no checkpoint", place=place)])
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata
