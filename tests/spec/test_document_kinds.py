"""Scenarios and recipes are documents of the same language: places, spellings, parents and overrides, all at once."""

from pathlib import Path

import pytest

import l4spec
from l4spec.errors import Problem, SpecError
from l4spec.spec.document import load_document, read_text
from l4spec.spec.document_kinds import kind_of, load, parse_any, parse_as
from l4spec.spec.model import ModelSpec
from l4spec.spec.scenario import Scenario
from l4spec.spec.scenario.references import load_scenario

SMALL = """\
l4spec: 1
kind: scenario
name: small
models:
  m: {spec: tiny/scout, gpus: 1xH100}
workload:
  arrivals: {kind: poisson, rate: 4/s}
  prompt_tokens: 2k
  output_tokens: {kind: uniform, low: 1, high: 300}
"""


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse_as(read_text(text, "small.yaml"), Scenario)
    return list(caught.value.problems)


def test_a_scenario_is_read_in_base_units() -> None:
    scenario = parse_as(read_text(SMALL, "small.yaml"), Scenario)
    assert scenario.workload.prompt_tokens == 2000
    assert scenario.workload.arrivals.model_dump() == {"kind": "poisson", "rate": 4.0}


def test_every_problem_is_reported_at_once_with_its_place() -> None:
    text = SMALL.replace("rate: 4/s", "rate: 4").replace("gpus:", "gpu:").replace("low: 1,", "low: 0,")
    shown = [str(problem) for problem in problems_of(text)]
    assert [line.split(": ")[0] for line in shown] == [
        *("small.yaml:5:3", "small.yaml:5:25", "small.yaml:7:29", "small.yaml:9:34")
    ]
    assert "did you mean 'gpus'?" in shown[1]
    assert "expected a rate like '4/s'" in shown[2]


def test_the_kind_of_a_document_is_checked_first() -> None:
    with pytest.raises(SpecError, match="expected a spec, found a scenario"):
        l4spec.load("scenarios/chat")
    (other,) = problems_of("l4spec: 1\nname: x\n")
    assert str(other) == "small.yaml:1:1: kind: expected a scenario, found a spec (add `kind: scenario`)"
    (unknown,) = problems_of(SMALL.replace("kind: scenario", "kind: scenrio"))
    assert unknown.hint == "did you mean 'scenario'?"
    assert kind_of(load_document("scout")).name == "spec"
    assert isinstance(parse_any(load_document("scout")), ModelSpec)


def test_a_variant_of_a_scenario_says_what_differs(tmp_path: Path) -> None:
    (tmp_path / "faster.yaml").write_text("l4spec: 1\nextends: scenarios/chat\nworkload: {requests: 7}\n")
    scenario = load(tmp_path / "faster.yaml", Scenario, ["workload.arrivals.rate=9/s"])
    assert scenario.name == "faster"
    assert (scenario.workload.requests, scenario.workload.arrivals.model_dump()["rate"]) == (7, 9.0)
    assert scenario.workload.prompt_tokens == load("scenarios/chat", Scenario).workload.prompt_tokens


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  prompt_tokens: 2k\n", "", "workload.prompt_tokens: missing field"),
        ("arrivals: {kind: poisson, rate: 4/s}", "arrivals: {kind: trace, path: x}", "a trace brings its own lengths"),
        ("low: 1, high: 300", "low: 5, high: 3", "workload.output_tokens.high: must be at least low (5), found 3"),
        ("gpus: 1xH100}", "gpus: 1xH100, shares_gpus_with: other}", "no other model is called 'other'"),
        (
            "workload:",
            "chain: [{name: a, model: other}]\nworkload:",
            "chain[0].model: no model is called 'other' (one of: m)",
        ),
        ("workload:", "chain: [{name: a}]\nworkload:", "a stage needs a `model`, or `seconds`"),
        ("workload:", "  n: {gpus: 1xH100}\nworkload:", "2 models need a `chain`"),
        ("name: small", "name: small\nestimated: [slo.tftt]", "there is no field at 'slo.tftt'"),
    ],
)
def test_rules_across_fields_name_the_field(old: str, new: str, expected: str) -> None:
    assert old in SMALL
    assert any(expected in str(problem) for problem in problems_of(SMALL.replace(old, new)))


def test_models_of_a_scenario_are_found_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("l4spec: 1\nextends: tiny/scout\n")
    (tmp_path / "load.yaml").write_text(SMALL.replace("tiny/scout", "own.yaml"))
    assert load_scenario(tmp_path / "load.yaml").models["m"].name == "own"
    (tmp_path / "load.yaml").write_text(SMALL.replace("tiny/scout", "ownn.yaml"))
    with pytest.raises(SpecError, match=r"load\.yaml:5:7: models\.m\.spec: no spec named 'ownn\.yaml'.*'own\.yaml'"):
        load_scenario(tmp_path / "load.yaml")
