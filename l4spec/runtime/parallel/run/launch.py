"""Ranks on this machine: processes that are started, watched and ended together."""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import FrameType

import torch._dynamo  # noqa: F401 - FSDP and optimizers do at first use; forked ranks share it
from torch._C._distributed_c10d import TCPStore

from l4spec.runtime.parallel.run.failure_detection import FAILURE, RANK_FAILED, Failure, leave, listening_store
from l4spec.runtime.parallel.run.rank import LAUNCHED, run_rank
from l4spec.runtime.parallel.run.task import NARROW, Log, Task

HOST = "127.0.0.1"
GRACE_SECONDS = 3.0
"""For ranks to see that the run has ended; those that have not are killed."""
INTERRUPTED = 130
TERMINATED = 143
TIME_UP = Failure("the time limit has come", 0)


class _Terminated(BaseException):
    """Raised on SIGTERM."""


def launch(
    task: Task,
    log: Log,
    *,
    greet: bool = True,
    time_limit: float | None = None,
    read: Callable[[TCPStore], None] = lambda store: None,
) -> int:
    """Run a task's ranks on this machine; returns the exit code. `log` prints the message of a failed run.

    With `greet` it first prints the ranks' process ids. After `time_limit` seconds all ranks are ended, which is no
    failure; `read` is then, or when they are done, called with the store that they have written to.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    importlib.import_module(task.worker.partition(":")[0])  # ranks are forked with it
    processes, ports = _start(task, task.layout.num_devices)
    failure: Failure | None = None
    store: TCPStore | None = None
    try:
        store = listening_store(HOST, 0, task.timeout)
        for port in ports:
            port.send(store.port)
        if greet:
            log(f"{task.layout}: ranks are processes {' '.join(str(process.pid) for process in processes)}")
        failure = _watched(processes, store, time_limit)
        if failure in (None, TIME_UP):
            read(store)
    except KeyboardInterrupt:
        failure = Failure(f"interrupted: {task.is_safe}", INTERRUPTED)
    except _Terminated:
        failure = Failure(f"terminated: {task.is_safe}", TERMINATED)
    finally:
        _end(processes, store, failure)
    if failure in (None, TIME_UP):
        return 0
    task.clean_up()
    log(failure.message)
    return failure.code


def _start(task: Task, world: int) -> tuple[list[BaseProcess], list[Connection]]:
    context = _context(task.device)
    processes: list[BaseProcess] = []
    ports: list[Connection] = []
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=_be_rank, args=(task.fresh(), rank, world, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        ports.append(ours)
    return processes, ports


def _context(device: str) -> ForkContext | SpawnContext:
    """Forked ranks share the modules that the launcher has imported; a GPU, or a Mac, does not survive forking."""
    is_safe = sys.platform == "linux" and device == "cpu"
    return multiprocessing.get_context("fork") if is_safe else multiprocessing.get_context("spawn")


def _be_rank(task: Task, rank: int, world: int, port: Connection) -> None:
    """A rank's process: as torchrun would start it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher hears it and ends all
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        number = port.recv()
    except EOFError:
        leave(RANK_FAILED)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(number),
        LAUNCHED: "1",
    }
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback and task.device == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    _share_cores(world, task.graph.hidden_size)
    run_rank(task)


def _share_cores(world: int, hidden_size: int) -> None:
    """As many threads per rank as there are cores for it, and one for a narrow model: threads that wait only crawl."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of_rank(world, hidden_size, os.cpu_count() or 1))


def threads_of_rank(world: int, hidden_size: int, cores: int) -> int:
    """Threads of one of `world` ranks on a machine of `cores`."""
    return 1 if hidden_size <= NARROW else max(1, cores // world)


def _watched(processes: list[BaseProcess], store: TCPStore, time_limit: float | None) -> Failure | None:
    """Wait for all ranks; as soon as one has failed, why, or TIME_UP."""
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    end = None if time_limit is None else time.monotonic() + time_limit
    while running:
        ended = wait(list(running), None if end is None else max(0.0, end - time.monotonic()))
        if not ended:
            return TIME_UP
        for sentinel in ended:
            assert isinstance(sentinel, int)
            rank = running.pop(sentinel)
            processes[rank].join()
            code = processes[rank].exitcode
            if code:
                return _why(rank, code, store)
    return None


def _why(rank: int, code: int, store: TCPStore) -> Failure:
    if store.check([FAILURE]):
        return Failure.read(store.get(FAILURE))
    if code > 0:
        return Failure(f"error: rank {rank} has ended with exit code {code}")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    guess = " (by the system, if memory ran out)" if name == "SIGKILL" else ""
    return Failure(f"error: rank {rank} was killed by {name}{guess}")


def _end(processes: list[BaseProcess], store: TCPStore | None, failure: Failure | None) -> None:
    """Leave no process after, and no zombie."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if store is not None and failure is not None:
        store.compare_set(FAILURE, "", failure.written())
    deadline = time.monotonic() + (GRACE_SECONDS if store is not None else 0.0)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
        process.join()


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise _Terminated
