"""What the tests of examples share: a package installed beside the environment of the tests, not into it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEW_KIND = Path(__file__).parents[2] / "examples" / "new_kind"


@pytest.fixture(scope="session")
def new_kind_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the package of examples/new_kind with its entry point."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [*pip, "--target", str(folder), str(NEW_KIND)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def with_new_kind(new_kind_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the test starts find the package."""
    paths = [str(new_kind_folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.delenv("L4SPEC_OWN_KINDS_ONLY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COLUMNS", "120")
