"""The command line in a process group of its own, forked from a server that has imported torch: it starts at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.distributed.world import FORKS

LIMIT_SECONDS = 90


@dataclass
class Command:
    """A running `l4spec`, what it has printed, and the processes that it says are its ranks."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pids(self) -> list[int]:
        """Of the ranks, in order."""
        head = self.err.read_text().splitlines()[0]
        return [int(word) for word in head.partition("processes")[2].split()]

    def wait_for(self, text: str) -> None:
        """Until it has printed this."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while text not in self.out.read_text():
            assert self.process.is_alive(), self.err.read_text()
            assert time.monotonic() < deadline, f"{text!r} has not come: {self.out.read_text()}{self.err.read_text()}"
            time.sleep(0.02)

    def ended(self, within: float) -> tuple[int | None, list[str]]:
        """Its exit code and what it said of the end, once it has ended in time and left no process behind."""
        began = time.monotonic()
        self.process.join(within)
        took = time.monotonic() - began
        assert not self.process.is_alive(), f"still running after {took:.1f} s: {self.err.read_text()}"
        assert self.has_no_orphans(5.0), "processes are left behind"
        return self.process.exitcode, self.err.read_text().splitlines()[1:]

    def has_no_orphans(self, within: float) -> bool:
        """Whether the whole process group is gone, or goes in time."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid or 0, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False


@contextmanager
def started(folder: Path, line: str, patch: Callable[[], None] | None = None) -> Iterator[Command]:
    """Run `l4spec LINE` in `folder`; `patch` is called in its process first. All of it is killed at the end."""
    out, err = folder / "out", folder / "err"
    out.write_text("")
    err.write_text("")
    process = FORKS.Process(target=run_main, args=(str(folder), line.split(), patch))
    process.start()
    command = Command(process, out, err)
    try:
        yield command
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()


def run_main(folder: str, arguments: list[str], patch: Callable[[], None] | None) -> None:
    """Be `l4spec` in this process, in a process group of its own, writing to the files `out` and `err`."""
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ["OMP_NUM_THREADS"] = "1"
    import sys

    import torch

    from l4spec.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if patch is not None:
        patch()
    sys.argv = ["l4spec", *arguments]
    main()
