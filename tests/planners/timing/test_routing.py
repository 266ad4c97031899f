"""A measured routing histogram: uneven choices reach fewer experts, so a decode step reads fewer weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from planners.module.pieces import hit_experts
from planners.plan import plan
from planners.timing.expert_coverage import coverage_of_histogram, expected_coverage
from planners.timing.layer_demand import UNIFORM
from planners.timing.routing import read_routing

NUM_EXPERTS = 16


@cache
def scout() -> LayerGraph:
    return l4spec.compile(l4spec.load("scout"))


def measured(path: Path, counts: list[int], layers: int = 48) -> str:
    load = [{"layer": f"text.layers.{layer}.ffn", "choices_per_expert": counts} for layer in range(layers)]
    path.write_text(json.dumps({"expert_load": load}), encoding="utf-8")
    return str(path)


def decode_seconds(routing: str | None) -> float:
    latency = plan(scout(), gpus="8xH100", tp=8, context=2048, batch=8, routing=routing).latency
    assert latency is not None
    assert latency.time_per_output_token_seconds is not None
    return latency.time_per_output_token_seconds


def test_an_even_histogram_is_uniform_routing(tmp_path: Path) -> None:
    assert decode_seconds(measured(tmp_path / "even.json", [7] * NUM_EXPERTS)) == pytest.approx(decode_seconds(None))


def test_choices_of_few_experts_read_fewer_weights(tmp_path: Path) -> None:
    uneven = decode_seconds(measured(tmp_path / "uneven.json", [900, 50, 20, *[1] * 13]))
    alone = decode_seconds(measured(tmp_path / "alone.json", [1, *[0] * 15]))
    assert alone < uneven < decode_seconds(None)


def test_layers_that_the_file_does_not_name_count_as_uniform(tmp_path: Path) -> None:
    counts = [30, 2, *[1] * 14]
    routing = read_routing(measured(tmp_path / "some.json", counts, layers=12), scout())
    group = next(group for group in scout().groups if group.first.id == "text.layers.0.ffn")
    assert group.count == 48
    expected = 0.25 * coverage_of_histogram(counts, 1, 8) + 0.75 * expected_coverage(NUM_EXPERTS, 1, 8)
    assert routing.reached(group, 8) == pytest.approx(expected)
    assert hit_experts(group, Work(8, 1, 100), routing) == pytest.approx(expected)


def test_a_plan_says_that_its_experts_are_chosen_as_measured(tmp_path: Path) -> None:
    path = measured(tmp_path / "m.json", [3] * NUM_EXPERTS)
    result = plan(scout(), gpus="8xH100", routing=path).latency
    assert result is not None
    assert any("as measured in 48 layers" in note for note in result.notes)


def test_without_a_file_routing_is_uniform() -> None:
    assert read_routing(None, scout()) is UNIFORM


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "holds no expert load"),
        ("[1, 2]", "holds no expert load"),
        ('{"expert_load": 3}', "holds no expert load"),
        ('{"expert_load": []}', "names no layer"),
        ({"layer": "text.layers.0.ffn", "choices_per_expert": [1] * 15}, "has 16 experts, the file counts 15"),
        ({"layer": "text.layers.0.ffn", "choices_per_expert": [0] * 16}, "was ever chosen"),
        ({"layer": "text.layers.0.ffn", "choices_per_expert": [-1] * 16}, "holds no expert load"),
        ({"layer": "text.layers.0.ffn", "choices_per_expert": [True] * 16}, "holds no expert load"),
        ({"layer": "text.layers.0.attention", "choices_per_expert": [1] * 16}, "no mixture of experts called"),
    ],
)
def test_a_file_that_is_no_measurement_of_the_model_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    text = content if isinstance(content, str) else json.dumps({"expert_load": [content]})
    (tmp_path / "odd.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        plan(scout(), gpus="8xH100", routing=str(tmp_path / "odd.json"))
    assert caught.value.problems[0].path == "routing"


def test_a_file_that_is_not_there_is_a_clean_error(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        plan(scout(), gpus="8xH100", routing=str(tmp_path / "missing.json"))
