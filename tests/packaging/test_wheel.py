"""The wheel, built from the sdist and installed alone, plans a shipped spec from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TRACED_PLAN = """
import json, os, sys
opened = []
def note(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)) and str(args[0]).endswith(".yaml"):
        opened.append(os.path.realpath(args[0]))
sys.addaudithook(note)
import l4spec, planners, l4spec.cli
sys.argv = ["l4spec", "plan", "scout", "--gpus", "8xH100"]
code = 0
try:
    l4spec.cli.main()
except SystemExit as end:
    code = end.code or 0
packages = [os.path.realpath(package.__file__) for package in (l4spec, planners)]
print(json.dumps({"code": code, "packages": packages, "opened": opened}))
"""
"""Plans scout as the command does; its last line tells the exit code, the packages and every YAML file opened."""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run without the caller's Python settings, so that only what is installed can be imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the sdist gives: both are what a release would upload."""
    out = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and sees the dependencies of this one after it.

    The .pth files of a folder that a .pth file names are ignored, so an editable l4spec here stays unseen there.
    """
    home = tmp_path_factory.mktemp("clean") / "env"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    scripts, library = (sysconfig.get_path(name, "venv", vars={"base": str(home)}) for name in ("scripts", "purelib"))
    python = Path(scripts) / Path("python").with_suffix(sysconfig.get_config_var("EXE") or "")
    installed = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel), cwd=home
    )
    assert installed.returncode == 0, installed.stderr
    dependencies = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(library) / "dependencies.pth").write_text("\n".join(dependencies), encoding="utf-8")
    return python


def shipped(folder: str) -> set[str]:
    """Paths of the YAML files under `folder`, relative to the repository."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.yaml")}


def test_the_wheel_holds_the_specs_the_catalogue_and_the_type_markers(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    specs = {f"l4spec/_{name}" for name in shipped("specs")}
    catalogue = shipped("planners/catalog")
    assert "l4spec/_specs/scout.yaml" in specs
    assert len(catalogue) > 10
    assert specs | catalogue | {"l4spec/py.typed", "planners/py.typed"} <= names


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].removesuffix(".dist-info") for name in names} == {"l4spec", "planners", "l4spec-0.1.0"}
    assert {Path(name).suffix for name in names if ".dist-info/" not in name} <= {
        ".py",
        ".typed",
        ".yaml",
        ".json",
        ".csv",
        ".j2",
    }


def test_the_command_plans_scout_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    plan = run(python.with_name("l4spec"), "plan", "scout", "--gpus", "8xH100", cwd=tmp_path)
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "scout" in plan.stdout.lower()
    assert not list(tmp_path.iterdir())


def test_what_the_plan_reads_comes_from_the_wheel(python: Path, tmp_path: Path) -> None:
    traced = run(python, "-c", TRACED_PLAN, cwd=tmp_path)
    assert traced.returncode == 0, traced.stderr
    traced_files = json.loads(traced.stdout.splitlines()[-1])
    site = python.parents[1].resolve()
    assert traced_files["code"] == 0
    assert all(Path(path).is_relative_to(site) for path in [*traced_files["packages"], *traced_files["opened"]])
    assert any(path.endswith("l4spec/_specs/scout.yaml") for path in traced_files["opened"])
    assert any("/planners/catalog/" in path for path in traced_files["opened"])
