"""The reader of torch's sharded files that trusts nothing that is in a folder."""

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from l4spec.errors import Place, Problem, UserError
from l4spec.runtime.parallel.checkpoints.described import WrongDescription, described
from l4spec.runtime.parallel.checkpoints.strict_pickle import MOST_BYTES, RefusedPickle

METADATA = ".metadata"


class TrustedReader(FileSystemReader):
    """Torch's own reader, made safe for untrusted folders."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._directory = directory

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the folder. Raises UserError for anything else."""
        path, place = self._directory / METADATA, Place(METADATA)
        try:
            if not path.is_file() or path.stat().st_size > MOST_BYTES:
                raise UserError([Problem("is larger than any description of a checkpoint", place=place)])
            metadata = described(path.read_bytes())
        except OSError as error:
            raise UserError([Problem(f"cannot be read: {error.strerror}", place=place)]) from None
        except (RefusedPickle, WrongDescription) as error:
            raise UserError([Problem(f"describes no checkpoint: {str(error)[:300]}", place=place)]) from None
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata
