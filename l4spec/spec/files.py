"""Reading a text file that a user named, safely: regular files of a sane size in UTF-8 only."""

import os
import stat
from pathlib import Path

from l4spec.errors import Place, Problem, SpecError, os_reason

MAX_BYTES = 1 << 20


def label(path: Path) -> str:
    """`path` as messages show it: relative if it is under the current folder, otherwise absolute."""
    absolute = _absolute(path)
    below = absolute.removeprefix(os.path.join(_here(), ""))
    return below or absolute


def _absolute(path: Path) -> str:
    return os.path.normpath(os.path.join(_here(), path))


def _here() -> str:
    """The current folder; the root where it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return os.sep


def read_utf8(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of the regular file `path`, by default at most 1 MiB, without a byte order mark.

    Raises SpecError for everything else; a larger file is refused before it is read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, f"expected a regular file, found {what_stands_at(status.st_mode)}")
        if status.st_size > max_bytes:
            raise _too_large(path, max_bytes)
        with open(path, "rb") as file:
            content = file.read(min(status.st_size, max_bytes) + 1)  # the buffer is made at once
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise _refused(path, f"cannot read the file: {os_reason(error)}") from error
    if len(content) > status.st_size:
        raise _refused(path, "the file has grown while it was read", "read it again")
    return _decoded(content, path)


def require_regular(path: Path) -> None:
    """Raise SpecError for a path that is not a regular file: a pipe would block, and a device never ends."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise _refused(path, f"cannot read the file: {os_reason(error)}") from error
    if not stat.S_ISREG(mode):
        raise _refused(path, f"expected a regular file, found {what_stands_at(mode)}")


def _decoded(content: bytes, path: Path) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _refused(path, "expected UTF-8, found UTF-16", "save the file as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
        message = f"expected UTF-8 text, found the byte 0x{content[error.start]:02X}"
        problem = Problem(message, place=Place(label(path), line, column), hint="save the file as UTF-8")
        raise SpecError([problem]) from error


def _too_large(path: Path, max_bytes: int) -> SpecError:
    return _refused(path, f"expected a file of at most {max_bytes >> 20} MiB, found a larger one")


def _refused(path: Path, message: str, hint: str = "") -> SpecError:
    return SpecError([Problem(message, place=Place(label(path)), hint=hint)])


def what_stands_at(mode: int) -> str:
    """Name of the file type of a path that is not a regular file, from its `st_mode`."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
