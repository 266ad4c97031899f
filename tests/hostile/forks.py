"""Work in a fork of this process: to be killed at any moment, or to have a small disk of its own."""

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_NEW_MOUNTS, _NEW_USER, _PRIVATE, _RECURSIVE = 0x00020000, 0x10000000, 1 << 18, 1 << 14


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Do `work` in a fork and kill that after so many seconds; whether it had not ended by then."""
    process = os.fork()
    if process == 0:
        _leave(work)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)  # of one that has ended and waits to be asked for, nothing happens
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def outcome_of(work: Callable[[], Any]) -> Any:
    """What `work` gives in a fork, as JSON; a text that begins with `raised` where it raised."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _leave(lambda: os.write(writing, json.dumps(work()).encode()), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    os.waitpid(process, 0)
    return json.loads(content) if content else "raised: nothing was told"


def _leave(work: Callable[[], object], writing: int | None = None) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        if writing is not None:
            os.write(writing, json.dumps(f"raised: {type(error).__name__}: {error}").encode())
    finally:
        os._exit(code)


def mounted_disk(place: Path, num_bytes: int) -> bool:
    """In a fork: a disk of so many bytes at a place that nobody else sees; False where the system gives none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return False
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS) != 0:
        if libc.unshare(_NEW_MOUNTS | _NEW_USER) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    libc.mount(None, b"/", None, _PRIVATE | _RECURSIVE, None)
    return bool(libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={num_bytes}".encode()) == 0)
