"""Laws of the spec language over random models."""

import yaml
from hypothesis import given

import l4spec
from l4spec.spec.document import read_text
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from tests.strategies import Data, model_specs, models


@given(models())
def test_a_spec_read_from_yaml_is_the_spec_that_was_written(data: Data) -> None:
    text = yaml.safe_dump(data, sort_keys=False)
    assert parse_spec(read_text(text, "random.yaml")) == ModelSpec.model_validate(data)


@given(model_specs())
def test_a_dumped_spec_reads_back_equal(spec: ModelSpec) -> None:
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    assert parse_spec(read_text(text, "random.yaml")) == spec


@given(model_specs())
def test_the_graph_of_an_equal_spec_has_the_same_nodes_and_edges(spec: ModelSpec) -> None:
    first, second = l4spec.compile(spec), l4spec.compile(ModelSpec.model_validate(spec.model_dump(mode="json")))
    assert [(node.id, node.declaration) for node in first.nodes] == [
        (node.id, node.declaration) for node in second.nodes
    ]
    assert sorted(first.dag.edges(data="port")) == sorted(second.dag.edges(data="port"))
