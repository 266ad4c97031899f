"""Several ranks on this machine: processes over gloo that run one function each and bring back what it returns.

Ranks are forked from a server that has imported torch and nothing more, so that starting one takes milliseconds.
"""

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
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "torch.distributed.fsdp", "l4spec.runtime.parallel.distribute"])


def run_world(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(rank, *args)` returns on each of `size` ranks; raises the first failure with its rank and trace."""
    with TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(size):
            here, there = _FORKS.Pipe()
            process = _FORKS.Process(target=_rank, args=(there, rank, size, folder, work, args), daemon=True)
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        try:
            return _collect(ends)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(ends: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(results) < len(ends):
        waiting = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {[ends.index(end) for end in waiting]} have not ended in {LIMIT_SECONDS} s")
        for end in ready:
            rank = ends.index(end)  # type: ignore[arg-type]
            ok, value = end.recv()  # type: ignore[union-attr]
            if not ok:
                raise AssertionError(f"rank {rank}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(ends))]


def _rank(end: Connection, rank: int, size: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    limit = timedelta(seconds=LIMIT_SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    try:
        end.send((True, work(rank, *args)))
    except BaseException:
        end.send((False, traceback.format_exc()))
    finally:
        end.close()
        os._exit(0)  # a rank whose peer has failed must not wait for it
