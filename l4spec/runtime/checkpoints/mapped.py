"""Weight files mapped into memory, of which little stays there."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from l4spec.runtime.checkpoints.digests import Unchanged

MOST_MAPPED_BYTES = 256 << 20
"""Read since the files were last mapped again; a single tensor may be larger."""
ReadByName = Callable[[str], Tensor]
"""Gives a tensor of a file, mapped."""


class MappedFiles:
    """Files that are mapped when they are read, and all let go once MOST_MAPPED_BYTES of them were.

    Pages of a mapped file that were read count as the process's own until the file is let go: after a whole checkpoint
    they would be as many as the weights.

    Reading beyond the end of a mapped file that was truncated ends the process (SIGBUS). Therefore a file is checked
    again before each tensor, and refused if it has changed; a truncation during the copy of a tensor is noticed too
    late.
    """

    def __init__(self, map_file: Callable[[Path], ReadByName]) -> None:
        self._map_file = map_file
        self._mapped: dict[Path, ReadByName] = {}
        self._seen: dict[Path, Unchanged] = {}
        self._num_bytes = 0

    def open(self, path: Path) -> ReadByName:
        """Map a file unless it is mapped. Raises the errors of mapping, and UserError for a file that has changed."""
        self._seen.setdefault(path, Unchanged.these([path])).require()
        if path not in self._mapped:
            self._mapped[path] = self._map_file(path)
        return self._mapped[path]

    def tensor(self, path: Path, name: str) -> Tensor:
        """A tensor of a file, valid while it lives."""
        if self._num_bytes > MOST_MAPPED_BYTES:
            self.close()
        tensor = self.open(path)(name)
        self._num_bytes += tensor.nbytes
        return tensor

    def close(self) -> None:
        """Let every file go; those that are read again are mapped again."""
        self._mapped.clear()
        self._num_bytes = 0
