"""Reports of any model: they can be written, and their sums are those of the plan."""

import json
from typing import Any

from hypothesis import given, settings
from jsonschema import Draft202012Validator

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.report.claims_page import verify_page
from l4spec.report.compare import compare, compare_page
from l4spec.report.explain import explain_page, flops_sums, parameter_sums, weight_sums
from l4spec.report.graph_views import view_of, write_view
from l4spec.report.page import to_markdown, to_text
from l4spec.report.plan_detail import detail_page
from l4spec.report.plan_page import plan_page
from l4spec.report.show import show_page
from l4spec.spec.json_schema import spec_schema
from l4spec.verification.claims import verify
from planners.plan import plan
from tests.strategies import graphs, models

VALIDATOR = Draft202012Validator(spec_schema())


def last(rows: list[tuple[str, ...]]) -> int:
    return int(rows[-1][-1].replace(",", "").removesuffix(" B"))


@settings(max_examples=25)
@given(graphs())
def test_every_report_of_every_model_can_be_written(graph: LayerGraph) -> None:
    for each_plan in (plan(graph), plan(graph, gpus="1xH100")):
        page = plan_page(each_plan) + detail_page(each_plan) + explain_page(graph, each_plan)
        page += show_page(graph) + compare_page(compare([(graph, each_plan)])) + verify_page(verify(graph))
        assert graph.name in to_text(page)
        assert "```" in to_markdown(page)


@settings(max_examples=25)
@given(graphs())
def test_explained_sums_are_those_of_the_plan(graph: LayerGraph) -> None:
    planned = plan(graph, batch=2)
    context = planned.deployment.context
    assert last(parameter_sums(graph)) == planned.params.total
    assert last(weight_sums(graph, "fp8")) == plan(graph, quantization="fp8").weights.bytes
    assert last(flops_sums(graph, Work(1, 1), text_only=True, pairs=False)) == planned.flops.forward_per_token
    assert last(flops_sums(graph, Work(2, context, phase="prefill", num_logits=1))) == planned.flops.prefill


@settings(max_examples=25)
@given(graphs())
def test_views_keep_every_parameter_and_are_acyclic(graph: LayerGraph) -> None:
    for level in ("block", "op"):
        drawn = json.loads(write_view(view_of(graph, level), "json"))
        position = {node["id"]: index for index, node in enumerate(drawn["nodes"])}
        assert sum(node["parameters"] for node in drawn["nodes"]) == plan(graph).params.total
        assert all(position[edge["source"]] < position[edge["target"]] for edge in drawn["edges"])


@settings(max_examples=50)
@given(models())
def test_the_json_schema_accepts_every_valid_spec(data: dict[str, Any]) -> None:
    assert not [error.message for error in VALIDATOR.iter_errors(data)]
