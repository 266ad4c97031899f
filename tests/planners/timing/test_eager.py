"""Times of our own module, by a made-up machine: laws that hold whatever was measured."""

from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from planners.catalog.cpu_profile import EagerTimes, Residency, SizeGrid
from planners.module.step_time import EagerModel
from planners.module.time_table import seconds_at, share_from_memory
from planners.plan import plan
from tests.planners.module.made_up import AXES, made_up
from tests.strategies import graphs

GRID = SizeGrid(
    axes=((1, 4, 16), (2, 8)), seconds=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0), cold=(2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
)


@cache
def times() -> EagerTimes:
    profile = made_up("fp32", "bf16").eager
    assert profile is not None
    return profile


@cache
def tiny(name: str, *overrides: str) -> LayerGraph:
    return l4spec.compile(l4spec.load(f"tiny/{name}", overrides))


def seconds(graph: LayerGraph, batch: int, tokens: int, cached: int = 0) -> float:
    return EagerModel(graph, times(), "fp32").seconds(Work(batch, tokens, cached, num_logits=1))


@pytest.mark.parametrize("cold", [0.0, 1.0])
def test_a_table_gives_back_what_was_measured(cold: float) -> None:
    expected = GRID.cold if cold else GRID.seconds
    read_back = [seconds_at(GRID, sizes, cold) for sizes in product(*GRID.axes)]
    assert read_back == pytest.approx(list(expected), rel=1e-12)


def test_between_points_a_table_follows_powers_and_above_them_goes_on() -> None:
    assert seconds_at(GRID, (2, 2)) == pytest.approx(2.0)  # 1 to 4 in a step of 4: exponent 1
    assert seconds_at(GRID, (64, 2)) == pytest.approx(64.0)
    assert seconds_at(GRID, (4, 4)) == pytest.approx(32.0**0.5)


def test_below_its_first_point_a_piece_is_its_overhead() -> None:
    assert seconds_at(GRID, (0.1, 1)) == pytest.approx(1.0)


def test_what_comes_half_from_memory_takes_the_mean_of_both() -> None:
    assert seconds_at(GRID, (4, 2), 0.5) == pytest.approx(6.0)


def test_the_share_from_memory_is_linear_between_what_was_measured() -> None:
    resident = Residency(bytes=(100, 200), share=(0.1, 0.5))
    assert [share_from_memory(resident, size) for size in (1, 100, 150, 900)] == pytest.approx([0.1, 0.1, 0.3, 0.5])


@pytest.mark.parametrize("broken", [{"seconds": (1.0,)}, {"cold": (1.0,)}, {"axes": ((4, 1, 16), (2, 8))}])
def test_a_table_with_holes_or_disorder_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"grid of 6 points|must grow"):
        SizeGrid.model_validate(GRID.model_dump() | broken)


@given(graphs(vision=False, bidirectional=False), st.integers(1, 4), st.integers(2, 40))
@settings(max_examples=40)
def test_every_text_model_gets_a_time_and_more_sequences_never_less(graph: LayerGraph, batch: int, tokens: int) -> None:
    for queries, cached in ((tokens, 0), (1, tokens)):
        one = seconds(graph, batch, queries, cached)
        assert 0 < one <= seconds(graph, batch + 1, queries, cached) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["scout", "maverick", "deepseek"])
def test_longer_prompts_and_longer_pasts_never_take_less(name: str) -> None:
    prompts = [seconds(tiny(name), 2, tokens) for tokens in (2, 15, 16, 64, 300, 2000)]
    pasts = [seconds(tiny(name), 2, 1, cached) for cached in (1, 15, 64, 300, 2000)]
    assert prompts == sorted(prompts)
    if name == "deepseek":  # chunks begin anew
        assert pasts == sorted(pasts)


def test_a_layer_more_takes_a_layer_s_time_more() -> None:
    layers = "text.layers=[{attention: local, ffn: moe, repeat: %d}]"
    one, two, three = (seconds(tiny("scout", layers % count), 1, 16) for count in (1, 2, 3))
    assert two - one == pytest.approx(three - two, rel=0.05)  # a larger model stays less in the caches
    assert two > one


def test_the_groups_and_the_constant_are_the_whole() -> None:
    model, work = EagerModel(tiny("maverick"), times(), "fp32"), Work(2, 40, num_logits=1)
    parts = sum(time.seconds for time in model.by_group(work)) + model.constant(model.cold(work))
    assert model.seconds(work) == pytest.approx(parts)


def test_products_of_a_large_layer_take_their_measured_time() -> None:
    """One dense layer of 512 x 4096, 512 tokens: nine tenths of it are three products on the grid."""
    spec = l4spec.load(
        "tiny/scout", ["vision=null", "text.hidden_size=512", "text.parts.moe={kind: swiglu, intermediate_size: 4096}"]
    )
    graph, work = l4spec.compile(spec), Work(1, 512, num_logits=1)
    group = next(group for group in graph.groups if group.first.kind == "swiglu")
    model = EagerModel(graph, times(), "fp32")
    index = AXES["product"][0].index(512) * 9 + 1 * 3 + 2
    product_seconds = times().pieces["fp32"].product.cold[index]
    predicted = model.layer_seconds(group, work, cold=1.0, code=1.0)
    assert 3 * product_seconds < predicted < 1.1 * 3 * product_seconds


def test_a_plan_on_the_machine_tells_times_and_their_error(shelf_of_one: None) -> None:
    actual = plan(tiny("scout"), gpus="1xthis", quantization="fp32", kv_dtype="fp32", context=100, batch=3).latency
    assert actual is not None
    assert actual.by_module
    expected = seconds(tiny("scout"), 1, 100), seconds(tiny("scout"), 3, 1, 99)
    assert (actual.ttft_seconds, actual.time_per_output_token_seconds) == pytest.approx(expected)
    assert {error.metric for error in actual.errors} == {"ttft", "tpot"}
    assert actual.tokens_per_second_per_gpu == pytest.approx(3 / expected[1])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"quantization": "int8"}, "was not calibrated for int8"),
        ({"mode": "train"}, "not training"),
    ],
)
def test_what_was_not_calibrated_has_no_time_and_says_why(
    shelf_of_one: None, asked: dict[str, str], reason: str
) -> None:
    result = plan(tiny("scout"), gpus="1xthis", **asked).latency
    assert result is not None
    assert result.ttft_seconds is None
    assert reason in (result.reason or "")


def test_without_a_profile_the_machine_is_unknown_and_the_mend_is_named(empty_shelf: None) -> None:
    with pytest.raises(UserError, match="no hardware is called 'this' yet") as caught:
        plan(tiny("scout"), gpus="1xthis")
    assert "l4spec calibrate" in caught.value.problems[0].hint
