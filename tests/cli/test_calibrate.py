"""`l4spec calibrate`: where it writes, what it refuses, and how other commands use what it wrote."""

import json
from pathlib import Path

import pytest

from l4spec.report import calibrate as report
from l4spec.runtime.calibrate import run as runtime
from tests.cli.conftest import Run
from tests.planners.module.made_up import made_up


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a profile, whose machine is measured in no time; gives where the profile would lie."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "calibrate", lambda *args, **kwargs: None)
    monkeypatch.setattr(report, "profile", lambda calibration: made_up("fp32", "bf16"))
    return tmp_path / "config" / "l4spec" / "hardware" / "this.yaml"


def test_the_profile_is_written_where_plans_find_it(run: Run, shelf: Path) -> None:
    assert run("plan", "tiny/scout", "--gpus", "1xthis").exit_code == 2
    done = run("calibrate")
    assert done.exit_code == 0
    assert "--gpus 1xthis" in done.stdout
    assert f"wrote {shelf}" in done.stderr
    planned = run("plan", "tiny/scout", "--gpus", "1xthis", "-q", "fp32", "--kv-dtype", "fp32")
    assert planned.exit_code == 0
    assert "TTFT" in planned.stdout
    assert "our own module" in planned.stdout
    assert any(line.startswith("this ") for line in run("ls", "hardware").stdout.splitlines())


def test_without_a_profile_the_machine_is_unknown_and_the_mend_is_named(run: Run, shelf: Path) -> None:
    done = run("plan", "tiny/scout", "--gpus", "1xthis")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no hardware is called 'this' yet (run `l4spec calibrate` on this machine)" in done.stderr


def test_measuring_again_replaces_the_profile_but_not_a_file_of_one_s_own(run: Run, shelf: Path) -> None:
    assert run("calibrate").exit_code == 0
    assert run("calibrate").exit_code == 0
    Path("mine.yaml").write_text("mine", encoding="utf-8")
    refused = run("calibrate", "--out", "mine.yaml")
    assert refused.exit_code == 2
    assert "mine.yaml exists" in refused.stderr
    assert Path("mine.yaml").read_text(encoding="utf-8") == "mine"
    assert run("calibrate", "--out", "mine.yaml", "--force").exit_code == 0
    assert run("plan", "tiny/scout", "--gpus", "1xmine.yaml").exit_code == 0


def test_a_place_that_cannot_be_written_is_refused_before_measuring(
    run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "calibrate", None)
    assert run("calibrate", "--out", ".").exit_code == 2
    Path("file").write_text("", encoding="utf-8")
    assert run("calibrate", "--out", "file/this.yaml").exit_code == 2


def test_an_interrupted_calibration_writes_nothing(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "calibrate", stopped)
    assert run("calibrate").exit_code == 130
    assert not shelf.exists()


def test_a_measurement_shows_its_times_beside_the_predicted_ones(run: Run, shelf: Path) -> None:
    import torch

    arguments = ("measure", "tiny/maverick", "--prefill", "20", "--decode", "3", "--format", "json")
    before = json.loads(run(*arguments).stdout)
    assert "l4spec calibrate" in before["time_note"]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as many as the made-up machine was calibrated with
        assert run("calibrate").exit_code == 0
        report = json.loads(run(*arguments).stdout)
    finally:
        torch.set_num_threads(threads)
    times = [row for row in report["rows"] if row["section"] == "time"]
    assert [row["name"] for row in times] == ["prefill", "decode step"]
    assert all(row["planned"] > 0 and row["measured"] > 0 and row["law"] == "timed" for row in times)
    assert all(row["agrees"] is None for row in times), "a busy machine is no failure"
    assert "usual error" in report["time_note"]


def test_a_profile_of_other_threads_predicts_nothing_and_says_so(run: Run, shelf: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run("calibrate").exit_code == 0
        done = run("measure", "tiny/maverick", "--prefill", "4", "--decode", "2")
    finally:
        torch.set_num_threads(threads)
    assert "calibrated with 1 threads, and 2 compute now" in done.stdout
