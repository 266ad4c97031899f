"""`about`: what is published about a model changes no number, is not inherited, and contradicts only what is there."""

import json
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.errors import SpecError
from l4spec.report.about import contradictions
from l4spec.report.compare import compare, compare_page
from l4spec.report.html import to_html
from l4spec.report.listing_document import shown
from l4spec.report.page import to_text
from l4spec.report.show import show_page
from l4spec.runtime.checkpoints.save import spec_text
from l4spec.spec.document import read_document, read_text
from l4spec.spec.estimates import effect_of
from l4spec.spec.grow import grow
from l4spec.spec.parse import parse_spec
from l4spec.spec.scale import scale_spec
from planners.plan import plan
from tests.spec.test_parse import SMALL

ABOUT = """\
about:
  source: "https://example.org/card"
  released: "2025-04-05"
  advertised_context: 1000
  evaluations:
    - {benchmark: Reading, score: 12.5, metric: "accuracy, percent", context: 100, contradicts_context: true}
"""


def with_about(about: str) -> l4spec.ModelSpec:
    return parse_spec(read_text(SMALL + about, "small.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("1000", "100", "about.evaluations[0].contradicts_context"),
        (", context: 100", "", "about.evaluations[0].contradicts_context"),
        ("2025-04-05", "5 April 2025", "about.released"),
        ("2025-04-05", "2025-13", "about.released"),
        ("12.5", "-1", "about.evaluations[0].score"),
        ("benchmark: Reading", "bench: Reading", "about.evaluations[0].bench"),
        ('source: "https://example.org/card"', "licence: MIT", "about.licence"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(old: str, new: str, path: str) -> None:
    assert old in ABOUT
    with pytest.raises(SpecError) as caught:
        with_about(ABOUT.replace(old, new))
    problems = {problem.path: problem for problem in caught.value.problems}
    assert path in problems
    assert problems[path].place is not None


def test_it_changes_no_number_and_marks_none() -> None:
    bare, known = parse_spec(read_text(SMALL, "small.yaml")), with_about(ABOUT)
    assert plan(l4spec.compile(bare)) == plan(l4spec.compile(known))
    assert effect_of(known, "about.released") == "none"


def test_another_model_inherits_none_of_it(tmp_path: Path) -> None:
    variant = tmp_path / "variant.yaml"
    variant.write_text("l4spec: 1\nextends: scout\n", encoding="utf-8")
    scout = l4spec.load("scout")
    assert scout.about is not None
    assert l4spec.load(variant).about is None
    assert grow(scout, width=2).about is None
    assert scale_spec(scout, num_layers=4).about is None
    assert "about" not in spec_text(scout)


def test_a_score_far_from_the_advertised_context_is_said() -> None:
    about = with_about(ABOUT).about
    assert about is not None
    assert list(contradictions(about)) == [
        "Reading: 12.5 (accuracy, percent) at 100 tokens, 10.0 % of the 1,000 advertised"
    ]


def facts(model: str) -> dict[str, Any]:
    data = read_document(model).data["about"]
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize("model", ["scout", "maverick", "behemoth"])
def test_show_and_its_document_hold_every_fact_of_a_spec(model: str) -> None:
    graph, about = l4spec.compile(l4spec.load(model)), facts(model)
    text = to_text(show_page(graph))
    document = json.loads(shown(graph).model_dump_json())["about"]
    assert {key: document[key] for key in about if key not in ("evaluations", "images")} == {
        key: value for key, value in about.items() if key not in ("evaluations", "images")
    }
    for each in about["evaluations"]:
        assert any(each["benchmark"] in line and f"{each['score']:g}" in line for line in text.splitlines())
    assert [each["count"] for each in document["images"]] == [each["count"] for each in about["images"]]
    assert "https://" in about["source"]


def test_a_comparison_puts_only_equal_conditions_in_one_row() -> None:
    graphs = [l4spec.compile(l4spec.load(name)) for name in ("scout", "maverick", "compare/llama-3-8b")]
    comparison = compare((graph, plan(graph)) for graph in graphs)
    assert [model.about is None for model in comparison.models] == [False, False, True]
    page = {section.title: to_text((section,)) for section in compare_page(comparison)}
    rows = page["Published evaluations"].splitlines()
    chart = [line.split() for line in rows if line.strip().startswith("ChartQA")]
    assert [row[-3:] for row in chart] == [["83.4", "85.3", "-"], ["88.8", "90", "-"]]
    assert "12 supported" in page["Published"]
    assert "15.6" in page["Against the advertised context"]
    assert "Published" not in {section.title for section in compare_page(compare([(graphs[2], plan(graphs[2]))]))}


def test_words_of_a_spec_are_no_markup() -> None:
    hostile = ABOUT.replace("Reading", '"<script>alert(1)</script>"')
    graph = l4spec.compile(with_about(hostile))
    assert "<script>alert" not in to_html(show_page(graph))
