"""Size and time of reports and pictures: `python benchmarks/report_speed.py [--runs 5]`.

Each report is written by a fresh process, as a user writes it, with its bytecode in place; times are medians of
processor time, user and system, since the machine may be busy.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

MOST_BYTES, MOST_SECONDS = 3_000_000, 2.0
SEARCH = ("search", "scout", "--gpus", "8xH100", "--prompt-tokens", "4k", "--output-tokens", "500")
COMMANDS = {
    "report scout": ("report", "scout", "--gpus", "8xH100"),
    "report maverick": ("report", "maverick", "--gpus", "8xH200"),
    "report behemoth": ("report", "behemoth", "--gpus", "64xH100"),
    "report deepseek-v3": ("report", "compare/deepseek-v3", "--gpus", "16xH200"),
    "report of three": ("report", "scout", "maverick", "behemoth", "--gpus", "8xH200"),
    "report of a scenario": ("report", "scenarios/guarded"),
    "report with drafts": ("report", "scenarios/maverick-drafts"),
    "report of RL": ("report", "recipes/behemoth-rl"),
    "report of a recipe": ("report", "recipes/behemoth", "--gpus", "32768xH100"),
    "search, html": (*SEARCH, "--format", "html"),
    "plan scout, html": ("plan", "scout", "--gpus", "8xH100", "--format", "html"),
    "compare, html": ("compare", "scout", "maverick", "behemoth", "--gpus", "8xH200", "--format", "html"),
    "picture of scout": ("graph", "scout", "--format", "svg"),
    "picture of behemoth": ("graph", "behemoth", "--format", "svg"),
}


def seconds_of(arguments: tuple[str, ...], out: Path) -> float:
    """Processor time of one run, which writes `out`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "l4spec", *arguments, "--out", str(out), "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr  # 3: valid, and does not fit
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row for each command; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    missed = False
    print(f"{'command':<22}{'bytes':>10}{'seconds':>10}")
    with TemporaryDirectory() as folder:
        for name, arguments in COMMANDS.items():
            out = Path(folder) / "out"
            seconds_of(arguments, out)
            seconds = statistics.median(seconds_of(arguments, out) for _ in range(runs))
            size = out.stat().st_size
            missed = missed or size > MOST_BYTES or seconds > MOST_SECONDS
            print(f"{name:<22}{size:>10,}{seconds:>10.2f}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
