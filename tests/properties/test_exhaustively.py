"""Every law of this folder over many more models: `python -m pytest -m slow tests/properties`."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAWS = sorted(path.name for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(path.name for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)
)
def test_the_laws_hold_over_thousands_of_models(name: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=exhaustive", "-m", "not slow"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / name)],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
