"""Failure detection among ranks: a key in their store, and heartbeats beside it.

The first rank to fail writes its error under one key; a thread of every other rank sees it within a second and ends its
process, whatever collective it is waiting in. A rank that is killed cannot write: its heartbeat stops, which the next
rank reports. So every rank ends in bounded time, with one message on the reason.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from l4spec.errors import UserError, os_reason

T = TypeVar("T")
RANK_FAILED = 4
"""Exit code of a run that one of its ranks has ended."""
WRONG_INPUT = 2
FAILURE = "failure"
BEAT_SECONDS = 0.25
LOST_SECONDS = 10.0
"""Longest wait for the cause once a peer has closed its connection, and for how long its heartbeat must be still."""
STILL_SECONDS = 2.0
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")
"""Words in errors of collectives whose peer is gone; torch raises plain RuntimeErrors for most."""
_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason of a run's end: the message with the rank's name, the exit code, and the rank that reported it."""

    message: str
    code: int = RANK_FAILED
    reporter: int | None = None

    def written(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: bytes) -> "Failure":
        """From the store, where whoever reaches the port may have written: whatever it is, it is a failure."""
        try:
            data = json.loads(text)
            message, code, reporter = data["message"], data["code"], data.get("reporter")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls("error: the run was ended by a message that is none of ours")
        is_code = type(code) is int and 0 < code < 256
        is_rank = reporter is None or type(reporter) is int
        return cls(str(message)[:10_000], code if is_code else RANK_FAILED, reporter if is_rank else None)

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Failure":
        """The failure that an error of this rank means."""
        if isinstance(error, UserError):
            return cls("\n".join(f"error: {problem}" for problem in error.problems), WRONG_INPUT)
        lines = str(error).strip().splitlines() or [""]
        if is_out_of_memory(error):
            line = next((line for line in lines if any(word in line.lower() for word in _MEMORY)), lines[0])
            return cls(f"error: rank {rank} is out of memory: {line[:300]}".rstrip(": "))
        return cls(f"error: rank {rank} failed: {type(error).__name__}: {lines[0][:300]}".rstrip(": "))


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory has run out, on the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY)


def is_lost_contact(error: BaseException) -> bool:
    """True if an error says that another rank could not be reached: then that rank's end is the cause."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


@dataclass(frozen=True, slots=True)
class Address:
    """Address of the store, and its owner: rank 0 unless the launcher is."""

    host: str
    port: int
    is_kept_by_launcher: bool

    def open(self, rank: int, timeout: float) -> TCPStore:
        """A connection of its own. Raises DistError without an answer, OSError if its port is taken."""
        if rank == 0 and not self.is_kept_by_launcher:
            return listening_store(self.host, self.port, timeout)
        return TCPStore(self.host, self.port, timeout=timedelta(seconds=timeout), wait_for_workers=False)


def listening_store(host: str, port: int, timeout: float) -> TCPStore:
    """A store that this process keeps, which listens at `host` alone: torch's own would do so on all interfaces.

    Raises OSError when the port is taken, or the host is not this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def within(seconds: float, work: Callable[[], T]) -> T:
    """Result of `work`, run in a thread that is abandoned after `seconds`: then TimeoutError is raised."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((work(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast("T", value)


class Watch:
    """Detects failures of other ranks. `speaks`: this rank may print the error that ended the run if it is first."""

    def __init__(self, address: Address, rank: int, world: int, timeout: float, *, speaks: bool) -> None:
        self.rank, self.world, self.timeout = rank, world, timeout
        self._speaks = speaks
        self._keeps_store = rank == 0 and not address.is_kept_by_launcher
        self.store = self._opened(lambda: address.open(rank, timeout), address)
        other = Address(address.host, address.port, is_kept_by_launcher=True)
        self._beats = self._opened(lambda: other.open(rank, max(timeout, LOST_SECONDS)), address)
        self._beat(0)
        self._ended = threading.Event()
        threading.Thread(target=self._keep_watch, daemon=True).start()

    def _opened(self, connect: Callable[[], TCPStore], address: Address) -> TCPStore:
        where = f"{address.host}:{address.port}"
        try:
            return within(self.timeout + 1, connect)
        except (dist.DistError, RuntimeError, OSError) as error:
            why = f"cannot listen at {where}: {os_reason(error)}"
            if isinstance(error, TimeoutError) or not isinstance(error, OSError):
                why = f"has not reached rank 0 at {where} within {self.timeout:g} s"
            self._report(f"error: rank {self.rank} {why}")
            leave(RANK_FAILED)

    def meet(self, facts: Mapping[str, Any]) -> None:
        """Wait for all ranks and compare the settings they were started with. Raises UserError naming the ranks."""
        self.store.set(f"facts/{self.rank}", json.dumps({"world size": self.world, **facts}))
        missing = self._missing_after(self.timeout)
        if missing:
            ranks = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            have = "have" if len(missing) > 1 else "has"
            self.end(Failure(f"error: {ranks} of {self.world} {have} not joined within {self.timeout:g} s"))
        first = json.loads(self.store.get("facts/0"))
        own = json.loads(self.store.get(f"facts/{self.rank}"))
        different = [name for name in own if own[name] != first.get(name)]
        if different:
            differences = ", ".join(f"{name} {own[name]} instead of {first.get(name)}" for name in different)
            raise UserError(f"rank {self.rank} was started otherwise than rank 0: {differences}")

    def _missing_after(self, seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        missing = list(range(self.world))
        while True:
            missing = [rank for rank in missing if not self.store.check([f"facts/{rank}"])]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.05)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, an error ends all ranks with one message."""
        try:
            yield
        except KeyboardInterrupt:
            self.end(Failure("interrupted", 130))
        except BaseException as error:
            if os.environ.get("L4SPEC_DEBUG"):
                raise
            self.end(self._cause_of(error))
        self._finish()

    def _cause_of(self, error: BaseException) -> Failure:
        """The failure that caused an error; if a peer is gone, its report or the lack of one."""
        own = Failure.of(self.rank, error)
        if not is_lost_contact(error):
            return own
        try:
            return self._reported_failure() or own
        except (dist.DistError, RuntimeError):
            return Failure("error: rank 0, or the launcher, has ended without a message (killed?)")

    def _reported_failure(self) -> Failure | None:
        ranks = [rank for rank in range(self.world) if rank != self.rank]
        seen = {rank: (self._last_beat(rank), time.monotonic()) for rank in ranks}
        deadline = time.monotonic() + LOST_SECONDS
        while time.monotonic() < deadline:
            if self.store.check([FAILURE]):
                return Failure.read(self.store.get(FAILURE))
            for rank in ranks:
                beat, since = self._last_beat(rank), seen[rank][1]
                if beat != seen[rank][0]:
                    seen[rank] = (beat, time.monotonic())
                elif time.monotonic() - since > STILL_SECONDS and not self.store.check([f"done/{rank}"]):
                    return Failure(f"error: rank {rank} has ended without a message (killed, or its machine is gone)")
            time.sleep(BEAT_SECONDS)
        return None

    def _last_beat(self, rank: int) -> bytes:
        return bytes(self.store.get(f"beat/{rank}"))

    def _beat(self, count: int) -> None:
        self._beats.set(f"beat/{self.rank}", str(count))

    def _keep_watch(self) -> None:
        """Until this rank is done: beat, look for a failure, and listen to the rank before this one."""
        before, count = (self.rank - 1) % self.world, 0
        heard, since = b"", time.monotonic()
        try:
            while not self._ended.wait(BEAT_SECONDS):
                count += 1
                self._beat(count)
                if self._beats.check([FAILURE]):
                    self._leave_quietly(Failure.read(self._beats.get(FAILURE)))
                if before == self.rank or not self._beats.check([f"beat/{before}"]):
                    continue
                beat = bytes(self._beats.get(f"beat/{before}"))
                if beat != heard or self._beats.check([f"done/{before}"]):
                    heard, since = beat, time.monotonic()
                elif time.monotonic() - since > self.timeout:
                    self.end(Failure(f"error: rank {before} has not answered for {self.timeout:g} s"))
        except (dist.DistError, RuntimeError):
            if not self._ended.is_set():
                time.sleep(LOST_SECONDS if self._speaks else 0.0)  # the main thread may know more
                self._report("error: rank 0, or the launcher, has ended without a message (killed?)")
                leave(RANK_FAILED)

    def end(self, failure: Failure) -> NoReturn:
        """Tell the others, unless one of them was first; print it, if so; leave."""
        self._ended.set()
        try:
            text = replace(failure, reporter=self.rank).written()
            first_failure = self.store.compare_set(FAILURE, "", text)
            if bytes(first_failure) == text.encode():
                self._report(failure.message)
            self._leave_quietly(Failure.read(first_failure))
        except (dist.DistError, RuntimeError):
            self._report(failure.message)
            leave(failure.code)

    def _leave_quietly(self, failure: Failure) -> NoReturn:
        if self._keeps_store:  # until the others have read it
            time.sleep(8 * BEAT_SECONDS)
        leave(failure.code)

    def _report(self, message: str) -> None:
        if self._speaks and sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(f"{message}\n")
                sys.stderr.flush()
            _tell_torchrun(message)

    def _finish(self) -> None:
        self._ended.set()
        self.store.set(f"done/{self.rank}", "1")
        if self._keeps_store:
            self.store.wait([f"done/{rank}" for rank in range(self.world)], timedelta(seconds=self.timeout))


def _tell_torchrun(message: str) -> None:
    """Write the message to torchrun's error file; torchrun repeats it at the end of its own report."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        text = json.dumps({"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}})
        with suppress(OSError):
            Path(path).write_text(text, encoding="utf-8")


def leave(code: int) -> NoReturn:
    """End this process now: no destructor may wait for a peer that is gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
