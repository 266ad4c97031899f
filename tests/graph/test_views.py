"""How a graph is drawn: runs of equal blocks, or every layer with what it does inside."""

import json
from typing import Any

import l4spec
from l4spec.report.graph_views import view_of, write_view


def drawn(level: str, style: str = "json") -> str:
    return write_view(view_of(l4spec.compile(l4spec.load("tiny/scout")), level), style)


def test_at_op_level_every_layer_shows_the_operations_that_it_declares() -> None:
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    nodes: list[dict[str, Any]] = json.loads(drawn("op"))["nodes"]
    assert [node["id"] for node in nodes] == [node.id for node in graph.nodes]
    attention = next(node for node in nodes if node["id"] == "text.layers.0.attention")
    assert [operation["name"] for operation in attention["operations"]] == [
        "q_proj", "k_proj", "v_proj", "rotate_normalise", "attend", "o_proj",
    ]  # fmt: skip
    assert attention["operations"][0]["detail"] == "weight [80, 80]"
    text = drawn("op", "text").splitlines()
    assert any(line.startswith("    attend ") and "attention" in line for line in text)
    assert "q_proj<br/>k_proj" in drawn("op", "mermaid")
    assert r"q_proj\nk_proj" in drawn("op", "dot")


def test_at_block_level_a_run_of_equal_blocks_is_one_box_without_operations() -> None:
    nodes: list[dict[str, Any]] = json.loads(drawn("block"))["nodes"]
    runs = [(node["label"], node["count"]) for node in nodes if node["kind"] == "block" and node["scope"] == "text"]
    assert runs == [("local + moe", 3), ("global + moe", 1)]
    assert all(node["operations"] == [] for node in nodes)
