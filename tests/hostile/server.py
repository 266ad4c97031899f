"""A process that has the command line imported and answers every command in a fork of its own.

Thousands of commands can be tried so, each with its exit code, output, CPU time and peak memory, without starting
Python anew for each. `python -m tests.hostile.server MODULE...` imports the modules and then reads one command a
line, as JSON.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS, LONGEST_CPU_SECONDS = 600, 60
"""When a command is killed: one that computes for so long, or waits so long; a busy machine lets all wait."""
LOOP_SECONDS = 0.02
"""CPU time of `_loop` on the machine that the limits of docs/reliability.md were measured on, when it was quiet."""
_KEPT = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended: `code` is negative for a signal; `out` and `err` hold the first characters."""

    code: int
    out: str
    err: str
    cpu_seconds: float
    peak_bytes: int
    asked: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What the process was asked for, so that it can be asked again."""

    @property
    def is_clean(self) -> bool:
        """An exit code that the help names, no traceback, and one line that says what is wrong where something is."""
        reported = (
            self.code not in (2, 4) or self.err.startswith(("error: ", "warning: ", "  ", "wrote")) or not self.err
        )
        return (
            self.code in (0, 1, 2, 3, 4)
            and "Traceback" not in self.err
            and reported
            and (self.code != 2 or bool(self.err))
        )


class Server:
    """The process, until it is closed."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server", *modules],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: str,
        cwd: Path | str = "/",
        files: int | None = None,
        out: str | None = None,
        err: str | None = None,
        gone: bool = False,
    ) -> Answer:
        """`l4spec ARGUMENTS` in the folder `cwd`.

        Of so many open files; stdout or stderr at a path instead of where they are read, or `closed`; with `gone` the
        folder is removed first.
        """
        what = {"arguments": arguments, "cwd": str(cwd), "files": files, "out": out, "err": err, "gone": gone}
        return self._answer(what)

    def answers_within(self, seconds: float, answer: Answer, attempts: int = 3) -> bool:
        """Whether a command takes at most so much CPU time, in the fastest of a few runs, the first of them `answer`.

        A busy machine's seconds are longer, and a neighbour may slow one run down and be gone at the next.
        """
        answers = chain([answer], (self._answer(answer.asked) for _ in range(attempts - 1)))
        return any(each.cpu_seconds <= seconds or each.cpu_seconds <= seconds * self.slowness() for each in answers)

    def _answer(self, what: dict[str, Any]) -> Answer:
        return Answer(**self._ask(what), asked=what)

    def slowness(self) -> float:
        """How many times as long as on a quiet machine CPU time is here and now, at least 1."""
        return max(1.0, float(self._ask({"loop": True})) / LOOP_SECONDS)

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _loop() -> float:
    """CPU seconds of some work whose amount is fixed: integers, a dict and text, as reading a spec is."""
    began = time.process_time()
    for number in range(150_000):
        _ = {str(number): number * 3}
    return time.process_time() - began


def _answer(what: dict[str, Any]) -> Any:
    if what.get("loop"):
        return min(_loop() for _ in range(2))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = os.fork()
        if process == 0:
            _run(what, out.fileno(), err.fileno())
        _, status, usage = os.wait4(process, 0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": _start_of(out),
            "err": _start_of(err),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
        }


def _start_of(file: Any) -> str:
    file.seek(0)
    return str(file.read(_KEPT).decode(errors="replace"))


def _run(what: dict[str, Any], out: int, err: int) -> None:
    """In the fork: the command, and the end of the process with its exit code."""
    from l4spec.cli import main

    code: object = 99
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.alarm(LONGEST_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, LONGEST_CPU_SECONDS)
        os.chdir(what["cwd"])
        if what["gone"]:
            os.rmdir(what["cwd"])
        for name, number in (("out", 1), ("err", 2)):
            _place(name, number, what[name])
        if what["files"]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (what["files"],) * 2)
        sys.argv = ["l4spec", *what["arguments"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _place(name: str, number: int, where: str | None) -> None:
    """Lead stdout or stderr elsewhere, or close it."""
    if where == "closed":
        os.close(number)
        setattr(sys, f"std{name}", None)
    elif where is not None:
        os.dup2(os.open(where, os.O_WRONLY), number)


def _serve(modules: list[str]) -> None:
    import_module("l4spec.cli")

    for module in modules:
        import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(sys.argv[1:])
