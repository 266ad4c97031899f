"""What ranks do as one: decide on one of them, and give a folder its name when all of them have written."""

import glob
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from l4spec.errors import UserError
from l4spec.runtime.checkpoints.write import require_new_folder

T = TypeVar("T")
_UNFINISHED = ".unfinished."


def is_first() -> bool:
    """Whether this rank acts for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank; its UserError too."""
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = str(error)
        except OSError as error:
            outcome[1] = f"{error.filename or 'a file'}: {error.strerror or error}"
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    result, problem = outcome
    if problem is not None:
        raise UserError(problem)
    value: T = result
    return value


@contextmanager
def new_folder(directory: Path | str) -> Iterator[Path]:
    """A folder beside `directory` for every rank to write in; it gets that name when all have, or is removed.

    Raises UserError on every rank where there is something already, or when one rank cannot write.
    """
    folder = on_first(lambda: _made_beside(require_new_folder(directory)))
    target = Path(directory)
    try:
        with failures_named(f"cannot write {target}"):
            yield folder
        on_first(lambda: _renamed(folder, target))
    except BaseException:
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def failures_named(what: str) -> Iterator[None]:
    """Inside, torch's collected failures of ranks become one UserError where they are about files.

    Without torch.distributed there is one rank, which torch need not warn about.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            if isinstance(cause, OSError):
                raise UserError(f"{what}: rank {rank}: {cause.strerror or cause}") from None
            if isinstance(cause, UserError):
                raise cause from None
            raise RuntimeError(f"{what}: rank {rank}: {type(cause).__name__}: {cause}") from error


def remove_unfinished(parent: Path, pattern: str) -> None:
    """Remove what killed ranks left of folders whose names were to match a pattern."""
    for folder in parent.glob(f".{pattern}{_UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _made_beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target.parent, glob.escape(target.name[:40]))
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}{_UNFINISHED}"))


def _renamed(folder: Path, target: Path) -> None:
    folder.chmod(0o755)
    if target.is_dir():
        target.rmdir()
    folder.rename(target)
