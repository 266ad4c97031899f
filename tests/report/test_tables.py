"""Table of all models, comparison, summary, listings and graph views: they show what the models are."""

import json

import pytest

from l4spec.errors import UserError
from l4spec.layers import KINDS
from l4spec.library import shipped_specs
from l4spec.report.compare import compare, compare_page
from l4spec.report.graph_views import view_of, write_view
from l4spec.report.listings import listing
from l4spec.report.model_table import model_table, model_table_page
from l4spec.report.page import to_text
from l4spec.report.show import show_page
from planners.catalog import Folder, shipped_names
from planners.plan import plan
from planners.request import PlanRequest
from tests.report.conftest import Compile


def test_the_table_of_all_models_agrees_with_a_plan_of_each_model(compiled: Compile) -> None:
    graphs = [compiled(name) for name in ("scout", "maverick")]
    table = model_table(graphs, PlanRequest(gpus="8xH100"), ("bf16", "int4"))
    assert [(row.model, row.quantization) for row in table.rows] == [
        (graph.name, precision) for graph in graphs for precision in ("bf16", "int4")
    ]
    for row, graph in zip(table.rows, [graph for graph in graphs for _ in range(2)], strict=True):
        planned = plan(graph, gpus="8xH100", quantization=row.quantization, objective="max-context")
        assert (row.fits, row.max_context, row.weight_bytes) == (
            planned.fits,
            planned.max_context,
            planned.weights.bytes,
        )


def test_the_least_gpus_fit_and_one_less_does_not(compiled: Compile) -> None:
    graph = compiled("maverick")
    (row,) = model_table([graph], PlanRequest(gpus="8xH100"), ("fp8",)).rows
    assert row.least_gpus is not None
    assert plan(graph, gpus=f"{row.least_gpus}xH100", quantization="fp8").fits
    assert not plan(graph, gpus=f"{row.least_gpus - 1}xH100", quantization="fp8").fits


def test_a_scheme_that_cannot_store_a_model_is_reported_in_its_row(compiled: Compile) -> None:
    tiny = compiled("tiny/scout")
    rows = model_table([tiny], PlanRequest(gpus="1xH100"), ("bf16", "w4a16")).rows
    assert rows[0].refusal is None
    assert rows[1].refusal is not None
    assert "divide" in rows[1].refusal


def test_unknown_names_stop_the_table_of_all_models(compiled: Compile) -> None:
    with pytest.raises(UserError, match="int5"):
        model_table([compiled("scout")], PlanRequest(gpus="8xH100"), ("int5",))


def test_the_table_of_all_models_states_what_it_assumes(compiled: Compile) -> None:
    text = to_text(model_table_page(model_table([compiled("behemoth")], PlanRequest(gpus="8xH100"), ("bf16",))))
    for words in ("8,192 tokens (the default)", "cache policy ideal", "~1.95T", "because they are unpublished"):
        assert words in text


def test_a_comparison_has_a_column_a_model_and_the_same_plan(compiled: Compile) -> None:
    graphs = [compiled(name) for name in ("scout", "maverick", "mobilellm-r1-950m")]
    comparison = compare((graph, plan(graph, gpus="8xH100")) for graph in graphs)
    text = to_text(compare_page(comparison))
    header, *rows = text.splitlines()
    assert all(graph.name in header for graph in graphs)
    assert "128 / 1" in next(row for row in rows if row.startswith("experts"))
    assert comparison.models[2].shape.num_experts == 0
    assert "8,192 tokens (the default)" in text


def test_the_pattern_of_scout_and_maverick_is_drawn(compiled: Compile) -> None:
    scout, maverick = (to_text(show_page(compiled(name))) for name in ("scout", "maverick"))
    assert "LLLG × 12" in scout
    assert "LLLG" * 12 in scout
    assert "M × 48" in scout
    assert "DM × 24" in maverick


@pytest.mark.parametrize("name", list(shipped_specs()))
def test_every_shipped_spec_can_be_shown_and_drawn(compiled: Compile, name: str) -> None:
    graph = compiled(name)
    text = to_text(show_page(graph))
    assert graph.name in text
    for level in ("block", "op"):
        view = view_of(graph, level)
        assert all(write_view(view, style) for style in ("text", "mermaid", "dot", "json"))


def test_a_summary_names_what_is_estimated(compiled: Compile) -> None:
    text = to_text(show_page(compiled("behemoth")))
    assert all(field in text for field in compiled("behemoth").model.estimated)


@pytest.mark.parametrize("level", ["block", "op"])
def test_no_parameter_and_no_layer_is_lost_in_a_view(compiled: Compile, level: str) -> None:
    graph = compiled("maverick")
    view = view_of(graph, level)
    assert sum(node.parameters for node in view.nodes) == plan(graph).params.total
    known = {node.id for node in view.nodes}
    assert {edge.source for edge in view.edges} | {edge.target for edge in view.edges} == known
    position = {node.id: index for index, node in enumerate(view.nodes)}
    assert all(position[edge.source] < position[edge.target] for edge in view.edges)
    blocks = sum(node.count for node in view.nodes if node.kind == "block" and node.scope == "text")
    assert blocks == (48 if level == "block" else 0)


def test_the_json_view_is_json_with_shapes(compiled: Compile) -> None:
    drawn = json.loads(write_view(view_of(compiled("scout"), "op"), "json"))
    assert len(drawn["nodes"]) == len(compiled("scout").nodes)
    assert ["batch", "tokens", 5120] in [edge["shape"] for edge in drawn["edges"]]


def test_views_quote_what_authors_wrote(compiled: Compile) -> None:
    view = view_of(compiled("scout"), "block")
    assert write_view(view, "dot").count("{") == write_view(view, "dot").count("}")
    assert "flowchart TD" in write_view(view, "mermaid")


@pytest.mark.parametrize("what", ["hardware", "quantization", "engines"])
def test_a_listing_names_every_entry(what: Folder) -> None:
    text = to_text(listing(what))
    names = shipped_names(what)
    assert len(names) > 5
    assert all(name in text for name in names)


def test_listings_name_every_spec_and_kind() -> None:
    specs, kinds = to_text(listing("specs")), to_text(listing("kinds"))
    assert all(name in specs for name in shipped_specs())
    assert all(name in kinds for name in KINDS)
