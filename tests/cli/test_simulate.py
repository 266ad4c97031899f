"""`l4spec simulate`: from a scenario or from options, as text and JSON, and every problem by its option."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Run

LOAD = ("--gpus", "8xH100", "--rate", "4/s", "--prompt-tokens", "1k", "--output-tokens", "20", "--requests", "30")


def test_a_scenario_runs_small(run: Run) -> None:
    done = run("simulate", "scenarios/chat", "--requests", "20")
    assert done.exit_code == 0
    assert "chat: 20 of 20 requests finished" in done.stdout
    assert "What the times rest on" in done.stdout
    assert "vllm's factors" in done.stdout


def test_no_file_is_needed(run: Run) -> None:
    done = run("simulate", "scout", *LOAD, "--format", "json")
    result = json.loads(done.stdout)
    assert result["finished"] == 30
    assert result["echo"]["prompt_tokens"] == 1000
    assert result["servers"][0]["model"] == "Llama-4-Scout-17B-16E"


def test_the_same_seed_gives_the_same_bytes(run: Run) -> None:
    first, again = (run("simulate", "scout", *LOAD, "--format", "json").stdout for _ in range(2))
    assert first == again
    assert run("simulate", "scout", *LOAD, "--seed", "1", "--format", "json").stdout != first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--rate", "4"), "--gpus: is needed"),
        (("--gpus", "8xH100"), "--rate: no requests arrive"),
        ((*LOAD, "--clients", "3"), "--rate and --concurrency each say when requests come"),
        ((*LOAD, "--think", "3 s"), "--think: needs --concurrency"),
        ((*LOAD, "--trace", "x"), "--rate and --trace each say when requests come"),
        ((*LOAD, "--ttft", "3"), "--ttft: slo.ttft: expected a quantity in s with its unit"),
        ((*LOAD, "--tp", "3"), "models.model: tp=3 x ep=1 x pp=1 x dp=1 = 3 devices do not divide the 8 GPUs"),
        (
            (*LOAD, "--engine", "llama.cpp"),
            "--engine: models.model.engine: the scheduler of engine 'llama.cpp' is not known",
        ),
        ((*LOAD[2:], "--gpus", "1xH100"), "leaves no room for a cache on 1xH100"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(run: Run, options: tuple[str, ...], expected: str) -> None:
    done = run("simulate", "scout", *options)
    assert done.exit_code == 2
    assert expected in done.stderr


def test_curves_are_drawn_the_same_each_time(run: Run, tmp_path: Path) -> None:
    asked = [
        "simulate",
        "llama-3.1-8b",
        *["--gpus", "1xH100", "--rate", "9/s", "--prompt-tokens", "900", "--output-tokens", "50"],
    ]
    drawn = []
    for name in ("one.svg", "two.svg"):
        result = run(*asked, "--requests", "60", "--svg", str(tmp_path / name), "--no-progress")
        assert result.exit_code == 0, result.stderr
        drawn.append((tmp_path / name).read_text("utf-8"))
    assert drawn[0] == drawn[1]
    root = ElementTree.fromstring(drawn[0])
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.startswith("running (max ") for text in texts)
    assert any(text.startswith("cache (max ") for text in texts)
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(int, point.split(","))
            assert 0 <= x <= int(root.attrib["width"])
            assert 0 <= y <= int(root.attrib["height"])


def test_a_report_of_a_simulation_holds_the_picture(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    asked = "simulate llama-3.1-8b --gpus 1xH100 --rate 9/s --prompt-tokens 900 --output-tokens 50 --requests 40"
    result = run(*asked.split(), "--format", "html", "--out", str(path), "--no-progress")
    assert result.exit_code == 0, result.stderr
    page = path.read_text("utf-8")
    assert page.count("<polyline") > 10
    assert "Over " in page


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--repeats", "2", "--requests-csv", "a.csv"), "--requests-csv"),
        (("--repeats", "2", "--timeline", "a.json"), "--timeline"),
        (("--repeats", "2", "--time-limit", "1"), "--time-limit"),
        (("--capacity", "--ttft", "1 s", "--svg", "a.svg"), "--svg"),
        (("--capacity", "--ttft", "1 s", "--repeats", "2"), "--repeats"),
        (("--requests-csv", "old"), "--requests-csv"),
        (("--svg", "no/a.svg"), "--svg"),
    ],
)
def test_an_option_without_effect_and_a_file_that_cannot_be_are_refused_before_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").touch()
    load = ("--gpus", "1xH100", "--rate", "2/s", "--prompt-tokens", "50", "--output-tokens", "5", "--requests", "5")
    result = run("simulate", "tiny/scout", *load, *arguments)
    assert result.exit_code == 2
    assert flag in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
