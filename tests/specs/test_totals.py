"""Published parameter counts, to the digit and by part.

Llama 4: total_size of the published safetensors indexes (bf16, so two bytes a parameter), and the shapes in them.
Others: what transformers builds from the published config, known from their safetensors headers too.
"""

from collections import Counter

import pytest

import l4spec
from l4spec.graph.layer_graph import LayerGraph

EMBEDDING = 1_034_485_760
TOTALS = {
    "scout": 108_641_793_536,
    "maverick": 401_583_781_376,
    "llama-guard-4-12b": 12_001_097_216,
    "mobilellm-r1-950m": 949_685_760,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_404_352,
    "gemma-2-27b": 27_227_128_320,
    "qwen3-235b-a22b": 235_093_634_560,
}
BY_PART = {
    "scout": {
        "embedding": EMBEDDING,
        "attention": 48 * 62_914_560,
        "routed_experts": 96_636_764_160,
        "shared_expert": 48 * 125_829_120,
        "router": 48 * 81_920,
        "norm": 48 * 10_240 + 5_120,
        "head": EMBEDDING,
        "vision": 850_960_896,
        "projector": 20_971_520,
    },
    "maverick": {
        "embedding": EMBEDDING,
        "attention": 48 * 62_914_560,
        "routed_experts": 386_547_056_640,
        "shared_expert": 24 * 125_829_120,
        "router": 24 * 655_360,
        "dense_ffn": 24 * 251_658_240,
        "norm": 48 * 10_240 + 5_120,
        "head": EMBEDDING,
        "vision": 850_960_896,
        "projector": 20_971_520,
    },
    "llama-guard-4-12b": {
        "embedding": EMBEDDING,
        "attention": 48 * 62_914_560,
        "dense_ffn": 48 * 125_829_120,
        "norm": 48 * 10_240 + 5_120,
        "head": EMBEDDING,
        "vision": 850_960_896,
        "projector": 20_971_520,
    },
}
ACTIVE_TEXT = {"scout": 17_172_894_720, "maverick": 17_184_691_200, "llama-guard-4-12b": 11_129_164_800}


def graph_of(name: str) -> LayerGraph:
    """The layer graph of a shipped spec."""
    return l4spec.compile(l4spec.load(name))


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_the_total_is_the_published_one(name: str, total: int) -> None:
    assert sum(parameter.numel for _, parameter in graph_of(name).parameters()) == total


@pytest.mark.parametrize("name", BY_PART)
def test_the_parts_are_the_published_ones(name: str) -> None:
    counted: Counter[str] = Counter()
    for node, parameter in graph_of(name).parameters():
        counted[node.part_of(parameter)] += parameter.numel
    assert {part: count for part, count in counted.items() if count} == BY_PART[name]


@pytest.mark.parametrize(("name", "active"), ACTIVE_TEXT.items())
def test_a_text_token_uses_the_published_number_of_parameters(name: str, active: int) -> None:
    nodes = [node for node in graph_of(name).nodes if node.scope == "text"]
    assert sum(node.declaration.num_active_parameters for node in nodes) == active


def test_the_layers_of_scout_are_36_local_and_12_global_ones_with_a_moe_each() -> None:
    blocks = graph_of("scout").model.text.stack.blocks
    assert all(block.attention and block.ffn for block in blocks)
    names = [(block.attention.name, block.ffn.name) for block in blocks if block.attention and block.ffn]
    assert Counter(names) == {("local", "moe"): 36, ("global", "moe"): 12}
    assert [i for i, (attention, _) in enumerate(names) if attention == "global"] == list(range(3, 48, 4))


def test_the_moe_layers_of_maverick_are_the_odd_ones() -> None:
    blocks = graph_of("maverick").model.text.stack.blocks
    assert [b.index for b in blocks if b.ffn and b.ffn.name == "moe"] == list(range(1, 48, 2))
    assert [b.index for b in blocks if b.attention and b.attention.name == "global"] == list(range(3, 48, 4))


def test_behemoth_meets_its_published_size() -> None:
    graph = graph_of("behemoth")
    total = sum(parameter.numel for _, parameter in graph.parameters())
    active = sum(node.declaration.num_active_parameters for node in graph.nodes if node.scope == "text")
    assert 1.94e12 < total < 2.0e12, "nearly two trillion"
    assert abs(active / 288e9 - 1) < 0.005


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("articles/scout", 563.0e9, 79.8e9), ("articles/maverick", 394.7e9, 11.2e9)],
)
def test_the_articles_dimensions_make_other_models(name: str, total: float, active: float) -> None:
    nodes = [node for node in graph_of(name).nodes if node.scope == "text"]
    assert sum(node.declaration.num_parameters for node in nodes) == pytest.approx(total, rel=1e-3)
    assert sum(node.declaration.num_active_parameters for node in nodes) == pytest.approx(active, rel=5e-3)
