"""Several ranks on this machine: processes over gloo that run one function each and bring back what it returns.

Ranks are forked from a server that has imported torch, and wait for more work when they are done, so that one more run
costs a tenth of a second. All of them are replaced after a failure, and after some runs: each group of gloo's that a
run leaves behind has threads that wake a hundred times a second.
"""

import atexit
import itertools
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LIMIT_SECONDS = 120
RUNS_BEFORE_NEW_RANKS = 8
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "torch.distributed.fsdp", "l4spec.runtime.parallel.step", "l4spec.runtime.parallel.run.launch"]
)
_waiting: list[tuple[Any, Any]] = []
"""Processes without work, and this end of the pipe to each."""
_runs = itertools.count(1)


class RankFailed(AssertionError):
    """What went wrong on the first rank that failed, with its trace."""


def run_world(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(rank, *args)` returns on each of `size` ranks; raises RankFailed with the first failure."""
    if next(_runs) % RUNS_BEFORE_NEW_RANKS == 0:
        stop_all()
    while len(_waiting) < size:
        here, there = FORKS.Pipe()
        process = FORKS.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        _waiting.append((process, here))
    with TemporaryDirectory() as folder:
        ends = [end for _, end in _waiting[:size]]
        try:
            for rank, end in enumerate(ends):
                end.send((rank, size, folder, work, args))
            return _collect(ends)
        except BaseException:
            stop_all()
            raise


@atexit.register
def stop_all() -> None:
    """End every rank, whatever it does."""
    for process, _ in _waiting:
        process.kill()
        process.join()
    _waiting.clear()


def _collect(ends: list[Any]) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(results) < len(ends):
        waiting = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {[ends.index(end) for end in waiting]} have not ended in {LIMIT_SECONDS} s")
        for end in ready:
            rank = ends.index(end)
            ok, value = ends[rank].recv()
            if not ok:
                raise RankFailed(f"rank {rank}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(ends))]


def _serve(end: "Connection[Any, Any]") -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            rank, size, folder, work, args = end.recv()
        except EOFError:
            return
        end.send(_answer(rank, size, folder, work, args))


def _answer(rank: int, size: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]  # it holds meshes of earlier worlds, whose groups are gone
    try:
        store = FileStore(str(Path(folder) / "store"), size)
        limit = timedelta(seconds=LIMIT_SECONDS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        value = work(rank, *args)
        dist.destroy_process_group()
    except BaseException:
        return False, traceback.format_exc()
    return True, value
