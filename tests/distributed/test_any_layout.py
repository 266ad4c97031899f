"""Random models under random layouts: they compute what one process does, and hold and send what is planned."""

import math

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import illegal_reason
from planners.catalog import engine, quantization
from planners.counts.kv_cache import cache_bytes
from planners.counts.weights import scheme_of
from planners.device.memory import cache_rows
from planners.device.stages import every_stage
from tests.distributed.anywhere import Case, RankResult, on_rank, one_process
from tests.distributed.sent import check_forward, check_training
from tests.distributed.test_divided_specs import tamed
from tests.distributed.test_truth import ONE_KV_HEAD
from tests.distributed.whole import NARROWER, explained, graph_from
from tests.distributed.world import run_world
from tests.runtime.hybrid_families import KDA
from tests.runtime.tiny import SWIGLU, any_sides, gqa, moe, text_of, vision
from tests.strategies import Data, Draw, models

FP64 = 8


def even(model: Data, factor: int) -> Data:
    """The same model with `factor` times as many query heads, experts, and widths of feed-forward layers."""
    for part in model["text"]["parts"].values():
        grown = {"gqa": ["num_heads"], "mla": ["num_heads"], "moe": ["num_experts", "intermediate_size"]}
        grown["mamba2"] = ["num_heads", "num_groups"]
        grown["kda"] = ["num_heads"]
        grown["gated_delta_net"] = ["num_key_heads", "num_value_heads"]
        for name in grown.get(part["kind"], ["intermediate_size"]):
            part[name] *= factor
        if part.get("shared_intermediate_size"):
            part["shared_intermediate_size"] *= factor
    return model


def legal_layouts(text: str, most_ranks: int) -> list[Layout]:
    """Of two to `most_ranks` ranks, those that cut layers first."""
    graph, degrees = graph_from(text), range(1, most_ranks + 1)
    layouts = [
        Layout(tp=tp, ep=ep, pp=pp, dp=dp)
        for tp in degrees
        for ep in degrees
        for pp in degrees
        for dp in degrees
        if 1 < tp * ep * pp * dp <= most_ranks
    ]
    return sorted(
        (layout for layout in layouts if illegal_reason(graph, layout) is None),
        key=lambda layout: (-(layout.tp > 1) - (layout.ep > 1), -layout.num_devices),
    )


@st.composite
def cases(draw: Draw, most_ranks: int) -> Case:
    """A model, a layout that it allows, and a batch that the layout divides."""
    factor = draw(st.sampled_from([2, 4, 1, 6]))
    text = yaml.safe_dump(even(tamed(draw(models())), factor))
    graph = graph_from(text)
    layouts = legal_layouts(text, most_ranks)
    assume(layouts)
    layout = draw(st.sampled_from(layouts))
    dropping = any(node.declaration.routed and node.declaration.routed.capacity_factor for node in graph.nodes)
    # a capacity is that of one forward pass: micro-batches drop other tokens than the batch in one
    microbatches = draw(st.integers(1, 3)) if layout.pp > 1 and not dropping else 1
    sequences = layout.dp * layout.ep * microbatches * draw(st.integers(1, 2))
    new = draw(st.integers(1, 3))
    tokens, tiles = draw(st.integers(new + 1, 24)), tuple[int, ...]()
    if graph.model.vision is not None:
        assume(graph.model.text.head.vocab_size > 1)
        tiles = tuple(draw(st.lists(st.integers(0, 2), min_size=sequences, max_size=sequences)))
        tokens += max(tiles) * graph.model.vision.num_tokens_per_tile
    return Case(text, layout, sequences, tokens, new, tiles, microbatches)


def check(case: Case) -> None:
    """Everything that is promised of a layout."""
    ranks = run_world(case.layout.num_devices, on_rank, case)
    whole = one_process(case)
    check_results(case, ranks, whole, one_process(case, "fp32"), one_process(case, nudged=True))
    check_held(case, ranks)
    check_forward(case, ranks, "prefill", case.tokens)
    if graph_from(case.text).can_cache:
        check_forward(case, ranks, "decode", case.new)
    if graph_from(case.text).model.vision is None:  # the plan leaves image tiles out
        check_training(case, ranks)


def noise(expected: Tensor, narrow: Tensor, nudged: Tensor) -> float:
    """The largest difference of fp32 from fp64, or of fp64 from itself with other roundings, as large as in fp32.

    Either may be the smaller by chance: deep blocks without a final norm magnified one rounding of the weights five
    times as much in fp64.
    """
    if not expected.numel():
        return 0.0
    return max(size_of(narrow.double() - expected), size_of(nudged - expected) / NARROWER)


def size_of(x: Tensor) -> float:
    """The largest value."""
    return float(x.abs().max()) if x.numel() else 0.0


def check_results(
    case: Case, ranks: list[RankResult], whole: RankResult, narrow: RankResult, nudged: RankResult
) -> None:
    graph, last = graph_from(case.text), case.layout.pp - 1
    for own in ranks:
        data = own.place.dp * case.layout.ep + own.place.ep
        for name in ("prefill", "decode"):
            logits, expected, *others = (getattr(one, name) for one in (own, whole, narrow, nudged))
            if expected is not None and own.place.pp == last:
                most = explained(graph, noise(expected, *others), size_of(expected))
                off = (logits - expected.chunk(case.data_ranks)[data]).abs().max()
                assert off <= most, f"{name} at {own.place}"
        assert own.generated == whole.generated, own.place
        shaken = abs(narrow.loss - whole.loss) + noise(whole.prefill, narrow.prefill, nudged.prefill)
        most = explained(graph, shaken, size_of(whole.prefill) + abs(whole.loss))
        assert math.isclose(own.loss, whole.loss, rel_tol=0, abs_tol=most), own.place
    check_gradients(case, ranks, whole, narrow, nudged)


def check_gradients(
    case: Case, ranks: list[RankResult], whole: RankResult, narrow: RankResult, nudged: RankResult
) -> None:
    """All regions of all tensors; a gradient passes through the contractions of two passes more.

    The loss's gradient is a difference of shares, each up to 1: where all of them cancel their rounding is left.
    """
    runs = [tuple(one.gradients[name][1] for one in (whole, narrow, nudged)) for name in whole.gradients]
    shaken, largest = max(noise(*grads) for grads in runs), max(size_of(grad) for grad, *_ in runs)
    most = explained(graph_from(case.text), shaken, max(3 * largest, 1.0))
    covered = dict.fromkeys(whole.gradients, 0)
    for own in ranks:
        for name, (region, grad) in own.gradients.items():
            expected = whole.gradients[name][1][tuple(slice(run.start, run.stop) for run in region)]
            assert grad.shape == expected.shape, name
            assert size_of(grad - expected) <= most, f"{name} at {own.place}"
            covered[name] += grad.numel()
    missing = [name for name, count in covered.items() if count < whole.gradients[name][1].numel()]
    assert not missing, "gradients that no rank has"


def check_held(case: Case, ranks: list[RankResult]) -> None:
    """The fullest rank of every stage, which is its first, holds the plan's bytes; no other holds more."""
    graph, layout = graph_from(case.text), case.layout
    stages = every_stage(graph, scheme_of(quantization("fp32")), layout.tp, layout.ep, layout.pp)
    for own in ranks:
        stage = stages[own.place.pp]
        planned = stage.weights.total_bytes * FP64 // 4
        assert own.param_bytes == planned if own.place.tp == 0 else own.param_bytes <= planned
        if graph.can_cache:
            rows = cache_rows(graph, stage, layout.tp, FP64)
            kept = cache_bytes(rows, engine("ideal"), case.tokens, case.sequences // case.data_ranks)
            assert own.cache_bytes == kept


FEW_WORDS = ONE_KV_HEAD.replace("vocab_size: 51", "vocab_size: 3")
SEEING = yaml.safe_dump(
    {
        "l4spec": 1,
        "name": "seeing",
        "text": text_of({"a": gqa(), "m": moe(), "f": SWIGLU}, [{"attention": "a", "ffn": ffn} for ffn in ("f", "m")]),
        "vision": vision(),
    }
)
IN_TURNS = {"time": 4, "row": 2, "column": 2, "interleaved": True}
DEEP = yaml.safe_dump(
    {
        "l4spec": 1,
        "name": "deep",
        "text": text_of(
            {"a": gqa(position={"kind": "rope", "theta": 10000.0, "sections": IN_TURNS}), "f": SWIGLU},
            [{"attention": "a", "ffn": "f", "repeat": 2}],
        ),
        "vision": any_sides(),
    }
)
BIASED_EXPERTS = yaml.safe_dump(
    {
        "l4spec": 1,
        "name": "biased",
        "text": text_of({"a": gqa(), "m": moe(expert_bias=True)}, [{"attention": "a", "ffn": "m"}]),
    }
)
BALANCED = yaml.safe_dump(
    {
        "l4spec": 1,
        "name": "balanced",
        "text": text_of({"a": gqa(), "m": moe(balance={"auxiliary_loss": 0.1})}, [{"attention": "a", "ffn": "m"}] * 2),
    }
)
GATES = yaml.safe_dump(
    {
        "l4spec": 1,
        "name": "gates",
        "text": text_of({"a": KDA | {"num_heads": 4}, "f": SWIGLU}, [{"attention": "a", "ffn": "f", "repeat": 2}]),
    }
)
CERTAIN = {
    "halves of gates that every rank of tp has whole": Case(GATES, Layout(tp=2, dp=2), 4, 21, 3),
    "a layer's own loss, a mean over micro-batches": Case(BALANCED, Layout(pp=2, dp=2), 12, 9, 2, (), 3),
    "biases of experts, which ep divides with their matrices": Case(BIASED_EXPERTS, Layout(tp=2, ep=2, dp=2), 4, 9, 2),
    "a shard without rows, which FSDP cannot reduce": Case(FEW_WORDS, Layout(tp=4, dp=2), 2, 9, 2),
    "a third of the labels, and images on one rank alone": Case(SEEING, Layout(dp=3), 3, 14, 2, (1, 0, 0)),
    "vectors for a block, and images on one rank alone": Case(DEEP, Layout(tp=2, dp=2), 4, 14, 2, (1, 0, 0, 0)),
    "a stage after the block that takes image vectors": Case(DEEP, Layout(pp=2), 4, 14, 2, (1, 0, 1, 0), 2),
    "stages of cut layers": Case(ONE_KV_HEAD, Layout(tp=4, pp=2), 4, 12, 2, (), 2),
    "stages whose weights data-parallel ranks share": Case(ONE_KV_HEAD, Layout(ep=2, dp=2, pp=2), 8, 12, 2, (), 2),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_once_failed_and_what_is_seldom_drawn(name: str) -> None:
    check(CERTAIN[name])


@settings(max_examples=15)
@given(cases(4))
def test_any_model_runs_under_any_layout_as_planned(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=250)
@given(cases(8))
def test_any_model_runs_under_any_layout_of_up_to_eight_ranks_as_planned(case: Case) -> None:
    check(case)
