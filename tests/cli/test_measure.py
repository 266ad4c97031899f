"""`l4spec measure`: plan beside run, and how the command leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.errors import UserError
from l4spec.verification.measure import MeasureReport
from tests.cli.conftest import Run

FAST = ("--prefill", "40", "--decode", "2")


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick", "tiny/deepseek"])
def test_every_row_of_the_shipped_miniatures_agrees(run: Run, name: str) -> None:
    result = run("measure", name, *FAST, "--train", "--batch", "2")
    assert result.exit_code == 0, result.stdout
    assert "plan and run agree in all" in result.stdout.splitlines()[0]
    assert "NO" not in result.stdout


def test_json_has_every_number_in_base_units(run: Run) -> None:
    result = run("measure", "tiny/scout", *FAST, "--tiles", "1", "--format", "json")
    report = json.loads(result.stdout)
    assert MeasureReport.model_validate(report).agrees
    rows = {(row["section"], row["name"]): row for row in report["rows"]}
    assert {row["law"] for row in report["rows"]} == {"exact", "bound", "shown"}
    assert rows["KV cache", "42 tokens"]["planned"] == rows["KV cache", "42 tokens"]["measured"]
    assert rows["executed FLOPs, prefill", "vision attention"]["measured"] > 0
    assert len(report["expert_load"][0]["choices_per_expert"]) == 16


def test_markdown_has_a_table_for_each_section(run: Run) -> None:
    text = run("measure", "tiny/scout", *FAST, "--format", "markdown").stdout
    assert text.count("|---") + text.count("|:--") >= 6


def test_a_row_that_disagrees_is_named_and_leaves_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.counts.kv_cache.entry_bytes", lambda *_: 1)
    result = run("measure", "tiny/scout", *FAST)
    assert result.exit_code == 1
    assert "rows do NOT agree" in result.stdout.splitlines()[0]
    assert "NO" in result.stdout


def test_a_miniature_of_a_released_model_is_measured(run: Run) -> None:
    result = run("measure", "scout", "--scale", "tiny", "--layers", "2", "--dtype", "bf16", *FAST)
    assert result.exit_code == 0, result.stdout
    assert "bf16" in result.stdout


@pytest.mark.parametrize(
    ("name", "scheme"), [("tiny/scout", "w4a16"), ("tiny/maverick", "fp8"), ("tiny/deepseek", "int8")]
)
def test_packed_weights_agree_in_every_row_and_their_output_error_is_shown(run: Run, name: str, scheme: str) -> None:
    result = run("measure", name, "--scale", "tiny", "--quantization", scheme, *FAST, "--format", "json")
    assert result.exit_code == 0, result.stdout
    report = json.loads(result.stdout)
    assert report["quantization"].startswith(scheme)
    rows = {row["section"]: row for row in report["rows"]}
    assert rows["weights"]["name"] == report["quantization"]
    assert rows["weights"]["planned"] == rows["weights"]["measured"]
    assert 0 < rows["output error"]["measured"] < 0.3
    assert rows["executed FLOPs, decode step"]["agrees"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-q", "gguf-q8_0"), "cannot be run: it stores Q8_0 blocks of GGUF"),
        (("-q", "w4a16"), "w4a16-g16 fits every tensor"),
        (("-q", "int8", "--dtype", "bf16"), "says the number formats"),
        (("-q", "int8", "--train"), "packed weights do not train"),
        (("-q", "int9"), "no quantization scheme is called 'int9'"),
    ],
)
def test_what_cannot_be_run_packed_is_refused_in_one_line(run: Run, options: tuple[str, ...], message: str) -> None:
    result = run("measure", "tiny/scout", *FAST, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_model_larger_than_memory_is_refused(run: Run) -> None:
    result = run("measure", "behemoth", *FAST)
    assert result.exit_code == 2
    assert "needs" in result.stderr
    assert "--scale" in result.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--tiles", "999"), "tiles take"),
        (("--prefill", "0"), "prefill"),
        (("--device", "meta"), "meta"),
        (("--device", "tpu"), "tpu"),
        (("--batch", "0"), "batch"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Run, options: tuple[str, ...], word: str) -> None:
    result = run("measure", "tiny/scout", *options)
    assert result.exit_code == 2
    assert word in result.stderr


def test_a_time_limit_says_that_rows_are_missing(run: Run) -> None:
    result = run("measure", "tiny/scout", *FAST, "--time-limit", "0")
    assert result.exit_code == 0
    assert "time limit" in result.stdout.splitlines()[0]


def test_an_interrupted_measurement_writes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("l4spec.runtime.measure.run._decode", interrupt)
    out = tmp_path / "report.json"
    result = run("measure", "tiny/scout", *FAST, "--out", str(out))
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_stages_are_reported_where_progress_is_requested(run: Run) -> None:
    result = run("measure", "tiny/scout", *FAST, "--progress")
    assert "measuring prefill" in result.stderr
    assert run("measure", "tiny/scout", *FAST, "--no-progress").stderr == ""


def test_measure_is_a_function_of_the_package() -> None:
    report = l4spec.measure("tiny/scout", prefill=10, decode=1)
    assert report.agrees
    assert report.finished
    with pytest.raises(UserError, match="vision"):
        l4spec.measure("tiny/deepseek", tiles=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tp 3", "tp3 ep1 pp1 dp1: tp=3 does not divide 10 (query heads)"),
        ("--pp 9", "tp1 ep1 pp9 dp1: pp=9 exceeds the 4 layers"),
        ("--ep 2 --batch 3", "--batch: 3 sequences cannot be divided among 2 ranks (dp x ep)"),
        ("--cp 2 --prefill 16", "--prefill: tp1 ep1 pp1 dp1 cp2: cp=2 cuts sequences between chunks of 16 tokens"),
        ("--cp 2 --train", "--train: tp1 ep1 pp1 dp1 cp2: gradients do not travel between context-parallel ranks"),
        ("--tp 2 --device cuda", "--device: ranks are measured on the cpu"),
        ("--tp 2 -q int8", "--quantization: packed weights are not cut into shards"),
        ("--tp 2 --tiles 1", "--tiles: image tiles are measured in one process"),
        ("--tp 2 --batch 0", "--batch: expected at least 1, found 0"),
        ("--tp 2 --set text.parts.moe.num_experts=16000000", "2 ranks need at least"),
    ],
)
def test_what_ranks_cannot_do_is_refused_before_any_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.setattr("l4spec.runtime.parallel.run.launch._start", lambda *_: pytest.fail("processes were started"))
    result = run("measure", "tiny/scout", *options.split())
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_under_torchrun_it_says_that_it_starts_ranks_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("measure", "tiny/scout", "--tp", "2")
    assert result.exit_code == 2
    assert "measure starts the ranks of its degrees itself (leave torchrun out)" in result.stderr


@pytest.mark.parametrize("name", ["compare/deepseek-v3.2", "deepseek-v4-flash"])
def test_a_peak_that_nobody_predicts_is_shown_and_not_judged(run: Run, name: str) -> None:
    result = run("measure", name, "--scale", "tiny", "--layers", "4", *FAST, "--format", "json")
    assert result.exit_code == 0, result.stdout
    (row,) = (row for row in json.loads(result.stdout)["rows"] if row["section"] == "activations")
    assert (row["law"], row["agrees"]) == ("shown", None)
