"""Decisions of rank 0 broadcast to all ranks, and the atomic publication of a checkpoint folder."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from l4spec.errors import Place, Problem, UserError
from l4spec.runtime.checkpoints.digests import (
    DIGESTS,
    Digest,
    differences,
    digest_of,
    files_of,
    read_digests,
    write_digests,
)
from l4spec.runtime.checkpoints.write import made_beside, name_folder, require_new_folder

T = TypeVar("T")
R = TypeVar("R")


def is_first() -> bool:
    """True if this rank acts for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and return its result, or raise its UserError, on every rank."""
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


def shared_out(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`work` done once for each item by one of the ranks, in the order of the items, known to all.

    Raises UserError on every rank where one of them cannot read or write.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own: tuple[list[R], str | None] = ([], None)
    try:
        own = [work(item) for item in items[rank::world]], None
    except OSError as error:
        own = [], f"{error.filename or 'a file'}: {error.strerror or error}"
    every: list[Any] = [own]
    if dist.is_initialized():
        every = [None] * world
        dist.all_gather_object(every, own)
    if failed := next((problem for _, problem in every if problem is not None), None):
        raise UserError(failed)
    return [every[number % world][0][number // world] for number in range(len(items))]


@contextmanager
def new_folder(directory: Path | str) -> Iterator[Path]:
    """A folder beside `directory` for every rank to write in; it gets that name when all have, or is removed.

    Raises UserError on every rank where there is something already, or when one rank cannot write.
    """
    folder = on_first(lambda: made_beside(require_new_folder(directory)))
    target = Path(directory)
    try:
        with failures_named(f"cannot write {target}"):
            yield folder
        names = on_first(lambda: files_of(folder))
        digests = dict(zip(names, shared_out(names, lambda name: digest_of(folder / name)), strict=True))
        on_first(lambda: _renamed(folder, target, digests))
    except BaseException:
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def require_undamaged_by_ranks(folder: Path, *, required: bool) -> None:
    """Compare every file with its digest, each on one of the ranks. Raises UserError on all of them.

    Where there are no digests at all it is an error if they are `required`, of a folder that only we write.
    """
    digests = on_first(lambda: read_digests(folder))
    if digests is None:
        if required:
            raise UserError([Problem("is missing", place=Place(DIGESTS), hint="--no-verify reads the folder without")])
        return
    names = list(digests)
    problems = shared_out(names, lambda name: list(differences(folder, digests, [name])))
    if result := [problem for some in problems for problem in some]:
        raise UserError(result)


def is_disk_full(error: BaseException) -> bool:
    """True if a write failed because the disk is full, recognized by the messages of torch's writer of zip files."""
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("unexpected pos", "file write failed", "No space left")
    )


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
            if isinstance(cause, (UnpicklingError, EOFError)):
                raise UserError(f"{what}: rank {rank}: a file of tensors is damaged: {cause}") from None
            if is_disk_full(cause):
                raise UserError(f"{what}: rank {rank}: {os.strerror(errno.ENOSPC)}") from None
            raise RuntimeError(f"{what}: rank {rank}: {type(cause).__name__}: {cause}") from error


def _renamed(folder: Path, target: Path, digests: Mapping[str, Digest]) -> None:
    write_digests(folder, digests)
    name_folder(folder, target)
