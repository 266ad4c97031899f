"""How ranks learn that one of them has failed: a key in their store, and heartbeats beside it.

Whoever fails first writes what happened under one key; a thread of every other rank sees it within a second and ends
its process, whatever collective that is waiting in. A rank that is killed cannot write: its heartbeat stops, which the
next rank reports. So every rank ends in bounded time, and one message says why.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from l4spec.errors import UserError

RANK_FAILED = 4
"""Exit code of a run that one of its ranks has ended."""
WRONG_INPUT = 2
FAILURE = "failure"
BEAT_SECONDS = 0.25
LOST_SECONDS = 10.0
"""Longest wait for the cause once a peer has closed its connection, and for how long its heartbeat must be still."""
STILL_SECONDS = 2.0
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")
"""Words of errors by which a collective says that a peer is gone; torch raises plain RuntimeErrors for most."""
_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run ends: the message with the rank's name in it, the exit code, and which rank says so."""

    message: str
    code: int = RANK_FAILED
    reporter: int | None = None

    def written(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: bytes) -> "Failure":
        """From the store."""
        return cls(**json.loads(text))

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Failure":
        """What an error of this rank means."""
        if isinstance(error, UserError):
            return cls("\n".join(f"error: {problem}" for problem in error.problems), WRONG_INPUT)
        lines = str(error).strip().splitlines() or [""]
        if is_out_of_memory(error):
            line = next((line for line in lines if any(word in line.lower() for word in _MEMORY)), lines[0])
            return cls(f"error: rank {rank} is out of memory: {line[:300]}".rstrip(": "))
        return cls(f"error: rank {rank} failed: {type(error).__name__}: {lines[0][:300]}".rstrip(": "))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY)


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error says that another rank could not be reached: that rank's end is the cause, not this one."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the store is, and who keeps it: rank 0 unless the launcher does."""

    host: str
    port: int
    is_kept_by_launcher: bool

    def open(self, rank: int, timeout: float) -> TCPStore:
        """A connection of its own. Raises DistError when nobody answers."""
        return TCPStore(
            self.host,
            self.port,
            is_master=rank == 0 and not self.is_kept_by_launcher,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )


class Watch:
    """One rank's eyes on the others. `speaks`: this rank may print what has ended the run, if it says so first."""

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
        try:
            return connect()
        except (dist.DistError, RuntimeError):
            where = f"{address.host}:{address.port}"
            message = f"error: rank {self.rank} has not reached rank 0 at {where} within {self.timeout:g} s"
            self._report(message)
            leave(RANK_FAILED)

    def meet(self, facts: Mapping[str, Any]) -> None:
        """Wait for all ranks, and compare what each was started with. Raises UserError naming the ranks."""
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
        """The failure behind an error; when a peer is gone, what it said or that it said nothing."""
        own = Failure.of(self.rank, error)
        if not is_lost_contact(error):
            return own
        try:
            return self._reported_failure() or own
        except (dist.DistError, RuntimeError):
            return Failure("error: rank 0, or the launcher, has ended without a word (killed?)")

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
                    return Failure(f"error: rank {rank} has ended without a word (killed, or its machine is gone)")
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
                self._report("error: rank 0, or the launcher, has ended without a word (killed?)")
                leave(RANK_FAILED)

    def end(self, failure: Failure) -> NoReturn:
        """Tell the others, unless one of them was first; print it, if so; leave."""
        self._ended.set()
        try:
            text = replace(failure, reporter=self.rank).written()
            first_failure = self.store.compare_set(FAILURE, "", text)
            if bytes(first_failure).decode() == text:
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
        if self._speaks:
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    def _finish(self) -> None:
        self._ended.set()
        self.store.set(f"done/{self.rank}", "1")
        if self._keeps_store:
            self.store.wait([f"done/{rank}" for rank in range(self.world)], timedelta(seconds=self.timeout))


def leave(code: int) -> NoReturn:
    """End this process now: no destructor may wait for a peer that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
