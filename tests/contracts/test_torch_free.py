"""`l4spec plan` starts in a blink because nothing on its way imports torch."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers")


def heavy_modules_after(code: str, folder: Path) -> list[str]:
    """Run `code` in a fresh interpreter in `folder`; return which of HEAVY it left in `sys.modules`."""
    report = f"import sys; print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


def test_importing_the_packages_and_the_command_leaves_torch_alone(tmp_path: Path) -> None:
    assert heavy_modules_after("import l4spec, planners, l4spec.cli", tmp_path) == []


def heavy_modules_of(arguments: list[str], folder: Path) -> list[str]:
    """What a command leaves of HEAVY."""
    code = "\n".join(
        (
            "import sys, l4spec.cli",
            f"sys.argv = {['l4spec', *arguments]!r}",
            "try:",
            "    l4spec.cli.main()",
            "except SystemExit as end:",
            "    assert end.code in (0, None), end.code",
        )
    )
    return heavy_modules_after(code, folder)


def test_planning_scout_leaves_torch_alone(tmp_path: Path) -> None:
    assert heavy_modules_of(["plan", "scout", "--gpus", "8xH100"], tmp_path) == []


def test_counting_tokens_leaves_torch_alone(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text("aaa", encoding="utf-8")
    assert heavy_modules_of(["vocabulary", "scout", "--tokenizer", "tokenizer.json", "--text", "text"], tmp_path) == []


def test_the_check_would_see_torch(tmp_path: Path) -> None:
    assert heavy_modules_after("import sys; sys.modules['torch'] = sys", tmp_path) == ["torch"]
