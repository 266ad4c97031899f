"""`l4spec import` and `export`: thin, honest, and inverse to each other."""

import json
from pathlib import Path

import l4spec
from tests.cli.conftest import Run


def test_an_exported_spec_imports_as_the_same_model(run: Run, tmp_path: Path) -> None:
    config, spec = tmp_path / "config.json", tmp_path / "scout.yaml"
    assert run("export", "scout", "--out", str(config)).exit_code == 0
    assert run("import", str(config), "--name", "again", "--out", str(spec)).exit_code == 0
    again = l4spec.load(spec)
    assert again.name == "again"
    plans = [json.loads(run("plan", name, "--format", "json").stdout) for name in ("scout", str(spec))]
    assert plans[0]["params"]["total"] == plans[1]["params"]["total"] == 108_641_793_536
    assert plans[0]["flops"] == plans[1]["flops"]


def test_the_imported_text_is_yaml_that_is_valid(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(run("export", "llama-guard-4-12b").stdout)
    spec = tmp_path / "spec.yaml"
    spec.write_text(run("import", str(config)).stdout)
    assert run("validate", str(spec)).exit_code == 0


def test_a_config_and_its_folder_are_planned_as_their_import_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(run("export", "compare/llama-3.1-8b").stdout)
    spec = tmp_path / "spec2.yaml"
    run("import", str(tmp_path), "--out", str(spec))
    texts = {run("plan", str(path), "--format", "json").stdout for path in (tmp_path, tmp_path / "config.json", spec)}
    assert len(texts) == 1
    assert run("validate", str(tmp_path)).exit_code == 0


def test_an_ignored_field_is_said_on_stderr_and_in_the_spec(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(run("export", "compare/llama-3.1-8b").stdout), "twist": 1}))
    assert run("import", str(config)).exit_code == 2
    result = run("import", str(config), "--ignore", "twist")
    assert result.exit_code == 0
    assert "note: " in result.stderr
    assert "twist" in result.stderr
    assert "twist" in result.stdout


def test_what_is_not_understood_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for text, word in (
        ('{"model_type": "gpt"}', "gpt"),
        ("[1]", "config.json"),
        ("{", "config.json"),
        ("\0", "config.json"),
    ):
        config.write_text(text)
        result = run("import", str(config))
        assert result.exit_code == 2
        assert word in result.stderr


def test_a_missing_config_is_no_traceback(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        result = run("import", str(path))
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")


def test_a_model_that_no_configuration_can_say_is_not_exported(run: Run) -> None:
    result = run("export", "scout", "--set", "text.parts.moe.router.score=softmax")
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert result.stdout == ""
