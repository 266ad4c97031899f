"""examples/sharded_training does what its README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sharded_training"


def test_a_killed_rank_is_named_and_the_run_goes_on_under_two_layouts(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE / "train.py"), "--steps", "3", "--checkpoint", "kept"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("error: ") == 1
    assert "error: rank 1 was killed by SIGKILL" in done.stdout
    assert re.search(r"steps \[6, 7.*\] were run twice, with equal losses", done.stdout)
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"step-00000005"}
