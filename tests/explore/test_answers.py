"""The page's numbers are the planner's: what it shows equals what the command that it gives away prints."""

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from starlette.testclient import TestClient
from typer.testing import CliRunner

from l4spec.cli import app
from l4spec.explore.answer import NOT_SENT
from l4spec.explore.explorer import Explorer
from tests.explore.questions import USUAL, Data, ask, client, questions

FITS, USER_ERROR, DOES_NOT_FIT = 0, 2, 3


@pytest.fixture(scope="module")
def browser() -> TestClient:
    return client()


def by_command(command: str) -> Data:
    program, *arguments = shlex.split(command)
    assert program == "l4spec"
    done = CliRunner().invoke(app, [*arguments, "--format", "json"], prog_name="l4spec")
    assert done.exit_code in (FITS, DOES_NOT_FIT), done.stderr
    document: Data = json.loads(done.stdout)
    return document


def sent(plan: Data) -> Data:
    """The plan without what the page leaves out, and without the echo of options, which a command omits at default.

    Whether a batch of 1 was given is such an echo.
    """
    kept = {key: value for key, value in plan.items() if key not in {*NOT_SENT, "request"}}
    deployment = {key: value for key, value in kept["deployment"].items() if key != "batch_origin"}
    return kept | {"deployment": deployment}


def assert_equal_to_the_command(question: Data) -> None:
    reply = ask(client(), "plan", **question)
    if "problems" in reply:
        assert all(problem["text"] for problem in reply["problems"])
        return
    document = by_command(reply["command"])
    assert sent(reply["plan"]) == sent(document)
    assert reply["fits"] == document["fits"]


@settings(max_examples=40)
@given(questions())
def test_a_variant_has_the_numbers_of_the_command_line(question: Data) -> None:
    assert_equal_to_the_command(question)


@pytest.mark.slow
@settings(max_examples=1000)
@given(questions())
def test_a_thousand_variants_have_the_numbers_of_the_command_line(question: Data) -> None:
    assert_equal_to_the_command(question)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("scout", {}),
        ("scout", {"text.layers[0].repeat": "6", "text.hidden_size": "4096", "text.parts.moe.num_experts": "32"}),
        ("maverick", {"text.parts.local.mask.size": "4096"}),
        ("compare/deepseek-v3", {"text.layers[1].repeat": "60", "text.parts.moe.num_experts_per_token": "4"}),
    ],
)
def test_the_yaml_is_the_variant(browser: TestClient, tmp_path: Path, model: str, fields: dict[str, str]) -> None:
    reply = ask(browser, "plan", model=model, fields=fields)
    path = tmp_path / "variant.yaml"
    path.write_text(reply["yaml"], "utf-8")
    again = by_command(reply["command"].replace(f"plan {model}", f"plan {path}").split(" --set")[0] + _options(reply))
    assert again["model"] == f"{Path(model).stem}-variant"
    assert sent(again | {"model": ""}) == sent(reply["plan"] | {"model": ""})


def _options(reply: Data) -> str:
    """The options of the command, which stand after its changes."""
    command = reply["command"]
    return "" if " --set" not in command else " --gpus" + command.partition(" --gpus")[2]


def test_a_spec_of_ones_own_is_given_away_whole(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("l4spec: 1\nextends: tiny/scout\ntext: {parts: {moe: {num_experts: 8}}}\n", "utf-8")
    browser = client(str(path), ("text.hidden_size=64", "vision.projector.output_size=64"))
    fields = {"text.parts.moe.num_experts": "4"}
    reply = ask(browser, "plan", model=str(path), fields=fields, options={})
    away = tmp_path / "away.yaml"
    away.write_text(reply["yaml"], "utf-8")
    assert "extends" not in reply["yaml"]
    assert by_command(f"l4spec plan {away}")["params"] == reply["plan"]["params"]
    assert by_command(reply["command"])["params"] == reply["plan"]["params"]


def test_the_parent_stands_unchanged_beside_the_variant(browser: TestClient) -> None:
    rows = {row["label"]: row for row in ask(browser, "plan", fields={"text.parts.moe.num_experts": "32"})["rows"]}
    unchanged = {row["label"]: row for row in ask(browser, "plan")["rows"]}
    assert {label: row["parent"] for label, row in rows.items()} == {
        label: row["value"] for label, row in unchanged.items()
    }
    assert (rows["parameters"]["value"], rows["parameters"]["change"]) == ("205.28B", "+88.95 %")
    assert {row["change"] for row in unchanged.values()} == {"0 %", "-"}


def test_suggestions_are_those_of_the_command(browser: TestClient) -> None:
    options = {"gpus": "1xh100-sxm", "context": "8192"}
    lines = ask(browser, "suggest", options=options)["text"].splitlines()
    document = by_command(ask(browser, "plan", options=options)["command"])
    assert len(lines) == len(document["suggestions"]) >= 1
    assert all(line.startswith(each["change"]) for line, each in zip(lines, document["suggestions"], strict=True))


def test_a_launch_is_that_of_the_command(browser: TestClient) -> None:
    reply = ask(browser, "launch", target="vllm")
    command = ask(browser, "plan")["command"]
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--emit", "vllm"], prog_name="l4spec")
    assert reply["text"] == done.stdout
    assert "vllm serve" in done.stdout


def test_a_report_is_that_of_the_command(browser: TestClient) -> None:
    options = {"gpus": "1xh100-sxm", "usd_per_gpu_hour": "2"}
    reply = ask(browser, "report", model="tiny/scout", options=options)
    arguments = ["report", "tiny/scout", "--gpus", "1xh100-sxm", "--usd-per-gpu-hour", "2"]
    done = CliRunner().invoke(app, arguments, prog_name="l4spec")
    assert reply["text"] == done.stdout


@pytest.mark.parametrize(
    ("question", "path", "words"),
    [
        ({"fields": {"text.parts.moe.num_experts": "many"}}, "text.parts.moe.num_experts", "whole number"),
        ({"fields": {"text.hidden_size": "-1"}}, "text.hidden_size", "-1"),
        ({"fields": {"text.parts.moe.num_experts_per_token": "99"}}, "text.parts.moe.num_experts_per_token", "exceed"),
        ({"fields": {"text.layers[0].repeat": "1" * 30}}, "text.layers[0].repeat", ""),
        ({"fields": {"text.__class__": "1"}}, "", "no field"),
        ({"options": {"gpus": "8xh1o0"}}, "gpus", "h1"),
        ({"options": {"gpus": "8x/etc/passwd"}}, "gpus", "names, no files"),
        ({"options": {"engine": "./vllm.yaml"}}, "engine", "names, no files"),
        ({"options": {"quantization": "int3"}}, "quantization", "int3"),
        ({"options": {"kv_dtype": "int3"}}, "kv_dtype", "int3"),
        ({"options": {"context": "1x"}}, "context", "number of tokens"),
        ({"options": {"context": "100M"}}, "context", "10,485,760"),
        ({"options": {"batch": "0"}}, "batch", "found 0"),
        ({"options": {"context": "100", "output_tokens": "100"}}, "output_tokens", "found 100"),
        ({"options": {"usd_per_gpu_hour": "-1"}}, "usd_per_gpu_hour", "price"),
        ({"options": {"routing": "/etc/passwd"}}, "", "no option"),
        ({"model": "/etc/passwd"}, "model", "no such model"),
    ],
)
def test_a_bad_value_is_explained_at_its_field(browser: TestClient, question: Data, path: str, words: str) -> None:
    problems = ask(browser, "plan", **question)["problems"]
    assert [problem for problem in problems if problem["path"] == path and words in problem["text"]], problems


def test_all_bad_values_are_explained_at_once(browser: TestClient) -> None:
    question = {"fields": {"text.hidden_size": "x"}, "options": USUAL | {"context": "y", "gpus": "z"}}
    assert {problem["path"] for problem in ask(browser, "plan", **question)["problems"]} == {
        "text.hidden_size",
        "context",
        "gpus",
    }


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"target": "emacs"}, "unknown target"),
        ({"options": {}, "target": "vllm"}, "needs GPUs"),
        ({"options": {"gpus": "1xh100-sxm"}, "target": "vllm"}, "does not fit"),
    ],
)
def test_what_cannot_be_launched_says_why(browser: TestClient, question: Data, words: str) -> None:
    assert words in ask(browser, "launch", **question)["problems"][0]["text"]


def test_every_shipped_model_has_controls_that_plan() -> None:
    browser = client()
    models = Explorer("scout").models
    assert len(models) >= 40
    for model in models:
        controls = ask(browser, "model", model=model)["controls"]
        assert {"text.hidden_size"} <= {control["path"] for control in controls}, model
        fields = {control["path"]: str(control["value"]) for control in controls}
        assert "verdict" in ask(browser, "plan", model=model, fields=fields, options={}), model
