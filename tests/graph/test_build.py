"""The layer graph: a read-only DAG whose nodes, edges, order and shapes follow the spec."""

import networkx as nx
import pytest

import l4spec
from l4spec.errors import SpecError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph, TensorType
from l4spec.spec.resolve import resolve

SMALL = ["text.layers=[{attention: global, ffn: moe, form: FORM}]", "vision=null"]


def small(form: str) -> LayerGraph:
    return l4spec.compile(l4spec.load("scout", [text.replace("FORM", form) for text in SMALL]))


def roles(graph: LayerGraph) -> list[str]:
    return [node.role for node in graph.nodes]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "pre_norm",
            ["attention_norm", "attention", "attention_add", "ffn_norm", "ffn", "ffn_add"],
        ),
        (
            "post_norm",
            ["attention", "attention_add", "attention_norm", "ffn", "ffn_add", "ffn_norm"],
        ),
        (
            "sandwich",
            [
                "attention_norm",
                "attention",
                "attention_post_norm",
                "attention_add",
                "ffn_norm",
                "ffn",
                "ffn_post_norm",
                "ffn_add",
            ],
        ),
        ("parallel", ["input_norm", "attention", "ffn", "add"]),
    ],
)
def test_a_block_is_laid_out_as_its_form_says(form: str, expected: list[str]) -> None:
    assert roles(small(form)) == ["embedding", *expected, "norm", "head"]


def test_the_residual_stream_is_the_first_input_of_every_addition() -> None:
    graph = small("pre_norm")
    assert graph.inputs_of("text.layers.0.attention_add") == ("text.embedding", "text.layers.0.attention")
    assert graph.inputs_of("text.layers.0.ffn_add") == ("text.layers.0.attention_add", "text.layers.0.ffn")


def test_a_parallel_block_shares_one_norm_and_adds_both_branches() -> None:
    graph = small("parallel")
    assert (
        graph.inputs_of("text.layers.0.attention")
        == graph.inputs_of("text.layers.0.ffn")
        == ("text.layers.0.input_norm",)
    )
    expected = ("text.embedding", "text.layers.0.attention", "text.layers.0.ffn")
    assert graph.inputs_of("text.layers.0.add") == expected


def test_nodes_come_in_topological_order_and_cannot_be_changed() -> None:
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    position = {node.id: index for index, node in enumerate(graph.nodes)}
    assert nx.is_directed_acyclic_graph(graph.dag)
    assert all(position[source] < position[target] for source, target in graph.dag.edges())
    with pytest.raises(nx.NetworkXError):
        graph.dag.add_node("more")


def test_every_edge_carries_a_named_tensor_with_symbolic_shape_and_dtype() -> None:
    graph = l4spec.compile(l4spec.load("scout"))
    tensors: list[TensorType] = list(nx.get_edge_attributes(graph.dag, "tensor").values())
    assert len(tensors) == graph.dag.number_of_edges() > 0
    assert {tensor.dtype for tensor in tensors} == {"bf16"}
    assert {tensor.shape for tensor in tensors} == {
        ("batch", "tokens", 5120),
        ("tiles", "patches", 1408),
        ("tiles", "image_tokens", 4096),
        ("tiles", "image_tokens", 5120),
    }


def test_equal_layers_share_one_declaration_so_that_depth_costs_no_planning() -> None:
    shallow, deep = (l4spec.compile(l4spec.load("scout", [f"text.layers[0].repeat={repeat}"])) for repeat in (1, 100))
    assert len(deep.nodes) > 10 * len(shallow.nodes)
    assert len(deep.groups) == len(shallow.groups)
    assert sum(group.count for group in deep.groups) == len(deep.nodes)


def test_scout_alternates_three_local_layers_and_a_global_one() -> None:
    graph = l4spec.compile(l4spec.load("scout"))
    labels = [node.label for node in graph.nodes if node.role == "attention" and node.scope == "text"]
    assert labels == ["local", "local", "local", "global"] * 12


def test_images_join_the_text_behind_the_embedding() -> None:
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    assert graph.inputs_of("text.merge") == ("text.embedding", "vision.projector")


def test_widths_that_do_not_meet_are_refused_with_both_ends() -> None:
    model = resolve(l4spec.load("scout"))
    assert model.vision is not None
    narrow = model.vision.projector.model_copy(update={"output_size": 4})
    broken = model._replace(vision=model.vision._replace(projector=narrow))
    with pytest.raises(SpecError, match=r"vision\.projector: gives a tensor .*4\], but text\.merge takes .*5120\]"):
        build_graph(broken)
