"""Runs what a page tells its reader to do, in the reader's order, and holds the page to what happens.

In a page, a fenced block

- ```yaml title=NAME``` and ```python title=NAME``` are files that the reader writes,
- ```bash``` is typed into a shell; with `exit=N` after it the last command ends so, otherwise with 0,
- ```text``` shows lines of what the block before it printed, in that order; a line `…` stands for any lines left out.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    options: str
    text: str

    def option(self, name: str) -> str | None:
        """The value of `name=value` after the language."""
        match = re.search(rf"\b{name}=(\S+)", self.options)
        return match[1] if match else None


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page that are to be run or compared."""
    blocks = [Block(*match.groups()) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in blocks if block.language in ("bash", "text", "yaml", "python")]


def walk_through(page: Path, folder: Path) -> int:
    """Do everything that `page` says inside `folder`; returns how many commands blocks were run."""
    printed, num_run = "", 0
    for block in blocks_of(page):
        title = block.option("title")
        if block.language in ("yaml", "python") and title:
            (folder / title).write_text(block.text, encoding="utf-8")
        elif block.language == "bash" and "norun" not in block.options:
            printed = _run(block, folder)
            num_run += 1
        elif block.language == "text":
            assert_shown(block.text, printed)
    return num_run


def _run(block: Block, folder: Path) -> str:
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-eu", "-c", block.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    exit_code = int(block.option("exit") or 0)
    assert done.returncode == exit_code, f"{block.text}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def assert_shown(shown: str, printed: str) -> None:
    """Every line that the page shows was printed, in the page's order; how wide columns are does not matter."""
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    for shown_line in shown.splitlines():
        if shown_line.strip() not in ("", "…"):
            is_shown = " ".join(shown_line.split()) in lines
            assert is_shown, f"the page shows a line that is not printed there: {shown_line!r}\n{printed}"
