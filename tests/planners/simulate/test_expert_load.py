"""Expert load: coverage of a step, the busiest rank, and which way skew moves times."""

import pytest

import l4spec
from l4spec.errors import UserError
from planners.catalog.expert_load import ExpertLoadProfile
from planners.catalog.loader import load
from planners.plan import plan
from planners.timing.expert_coverage import coverage_of_busiest, coverage_of_histogram, expected_coverage
from planners.timing.routing import read_routing, routed_nodes

MEASURED = {1: 1.0, 2: 1.92, 4: 3.64, 8: 6.75, 16: 12.05, 32: 20.38, 64: 32.63, 128: 48.31}
"""Mean distinct experts of a decode step over Maverick's 24 routed layers, counted from arXiv 2510.05497's traces."""


@pytest.mark.parametrize(("batch", "measured"), MEASURED.items())
def test_coverage_of_mavericks_real_load_is_within_one_percent(batch: int, measured: float) -> None:
    rows = load("expert_load", ExpertLoadProfile, "maverick").choices
    mean = sum(coverage_of_histogram([float(count) for count in row], 1, batch) for row in rows) / len(rows)
    assert abs(mean / measured - 1) < 0.01
    uniform = expected_coverage(128, 1, batch) / measured - 1
    assert uniform < 0.69
    assert batch < 128 or uniform > 0.6


def test_the_profile_lies_on_mavericks_layers_and_on_no_other_model() -> None:
    graph = l4spec.compile(l4spec.load("maverick"))
    routing = dict(read_routing("maverick", graph).layers)
    assert [node.id for node in routed_nodes(graph)] == [f"text.layers.{index}.ffn" for index in range(1, 48, 2)]
    layer45 = routing["text.layers.45.ffn"]
    assert max(layer45) > 0.99 * sum(layer45)
    with pytest.raises(UserError, match=r"counts 128 experts in 24 layers, .* has 16 in 48"):
        read_routing("maverick", l4spec.compile(l4spec.load("scout")))


def test_skew_makes_decodes_faster_and_long_prefills_slower() -> None:
    graph = l4spec.compile(l4spec.load("maverick"))
    asked = {"gpus": "8xH200", "quantization": "fp8", "ep": 8, "engine": "vllm", "batch": 128, "context": 16_384}
    even, skewed = (plan(graph, **asked, routing=routing).latency for routing in (None, "maverick"))
    assert even is not None
    assert skewed is not None
    assert even.decode is not None
    assert skewed.decode is not None
    assert skewed.decode.bound_seconds < even.decode.bound_seconds
    assert even.ttft_seconds is not None
    assert skewed.ttft_seconds is not None
    assert skewed.ttft_seconds > even.ttft_seconds


def test_the_busiest_rank_reaches_as_many_experts_as_the_mean_or_more() -> None:
    shares = [float(rank + 1) for rank in range(16)]
    for tokens in (1, 8, 64):
        mean = coverage_of_histogram(shares, 1, tokens) / 4
        assert coverage_of_busiest(shares, 1, tokens, 4) > mean
        assert abs(coverage_of_busiest([1.0] * 16, 1, tokens, 4) - expected_coverage(16, 1, tokens) / 4) < 1e-9


@pytest.mark.parametrize("text", ["power_law:x", "log_normal:-1", "zipf:2", "nothing"])
def test_an_unknown_load_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        read_routing(text, l4spec.compile(l4spec.load("scout")))


@pytest.mark.parametrize("text", ["power_law:1.2", "log_normal:1.0"])
def test_a_law_without_skew_is_uniform(text: str) -> None:
    graph = l4spec.compile(l4spec.load("scout"))
    node = routed_nodes(graph)[0]
    for number, even in ((text.partition(":")[2], False), ("0", True)):
        shares = dict(read_routing(f"{text.partition(':')[0]}:{number}", graph).layers)[node.id]
        assert (max(shares) == min(shares)) is even
