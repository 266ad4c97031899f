"""What one rank holds, computes and hands over, against what whole models and the fullest devices do."""

from collections import defaultdict

import pytest

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout, place_of
from l4spec.sharding.sequence import passed_blocks, runs_of, sent_tokens
from planners.catalog import quantization
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import stage_traffic
from planners.counts.weights import scheme_of
from planners.device.stages import every_stage
from planners.device.training_state import TrainSetting
from planners.module.executed import executed_flops
from planners.module.runtime_collectives import Pass, forward_on_rank, training_on_rank
from planners.module.runtime_rank import executed_on_rank, stage_on_rank, weights_on_rank

BF16 = scheme_of(quantization("bf16"))


def graph_of(name: str, *overrides: str) -> LayerGraph:
    return l4spec.compile(l4spec.load(name, overrides))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("scout", Layout(tp=8, ep=2, pp=3)),
        ("maverick", Layout(tp=4, ep=8, dp=2)),
        ("behemoth", Layout(tp=8, ep=16, pp=8)),
        ("compare/gemma-2-27b", Layout(tp=8, pp=2)),
        ("tiny/scout", Layout(tp=2, pp=2)),
    ],
)
def test_the_fullest_rank_of_a_stage_is_the_one_that_is_planned(name: str, layout: Layout) -> None:
    graph, fullest = graph_of(name), defaultdict[int, int](int)
    for rank in range(layout.num_devices):
        stage = place_of(layout, rank).pp
        fullest[stage] = max(fullest[stage], weights_on_rank(graph, BF16, layout, rank).weight_bytes)
    planned = every_stage(graph, BF16, layout.tp, layout.ep, layout.pp)
    assert fullest == {stage.index: stage.weights.total_bytes for stage in planned}


@pytest.mark.parametrize("layout", [Layout(tp=4), Layout(pp=3), Layout(tp=2, pp=2, dp=2), Layout(dp=4)], ids=str)
@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_ranks_of_a_dense_model_compute_together_what_one_process_does(layout: Layout, phase: str) -> None:
    """Without routers and repeated heads nothing is computed twice."""
    graph = graph_of("compare/llama-3.1-8b", "text.vocab_size=1023")
    cached = 100 if phase == "decode" else 0
    work = Work(8, 7, cached, phase=phase)  # type: ignore[arg-type]
    own = Work(8 // layout.dp, 7, cached, phase=phase)  # type: ignore[arg-type]
    rows = [row for rank in range(layout.num_devices) for row in executed_on_rank(graph, layout, rank, own)]
    assert sum(row.flops or 0 for row in rows) == executed_flops(graph, work)


@pytest.mark.parametrize(
    "layout",
    [Layout(dp=2), Layout(ep=2), Layout(ep=2, dp=2), Layout(tp=2, dp=2), Layout(tp=2, ep=2), Layout(pp=2, dp=2)],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick"])
def test_where_shards_are_even_ranks_share_what_the_plan_of_training_says(name: str, layout: Layout) -> None:
    """In bf16, with routing that is even: bytes of all but what counts ids and tells the loss."""
    graph = graph_of(name, "vision=null")
    step = Pass(Work(4, 16, phase="train"), 16, 2)
    for rank in range(layout.num_devices):
        stage = stage_on_rank(graph, BF16, layout, place_of(layout, rank))
        training = training_on_rank(graph, layout, rank, stage, step, micro_batches=2)
        train = TrainSetting(zero_stage=3, checkpointing="none", gradient_bytes=4)
        expected: dict[tuple[str, str], int] = defaultdict(int)
        for row in stage_traffic(graph, train, layout, StepTokens(64, 2), stage, None).rows:
            if row.collective in ("all-gather", "reduce-scatter", "send"):
                expected[layout.data_axis if row.axis == "dp_ep" else row.axis, row.collective] += row.payload_bytes
        assert expected
        assert {key: training[key].payload_bytes for key in expected} == expected


def test_blocks_that_are_passed_on_are_what_is_sent() -> None:
    graph = graph_of("tiny/scout")
    runs = runs_of(graph, 250, 4)
    for rank in range(4):
        blocks = [blocks for _, blocks in passed_blocks(graph, runs, rank)]
        assert [sum(each) for each in blocks] == [tokens[rank] for _, tokens in sent_tokens(graph, runs)]
        assert all(len(each) == (rank + 1 if rank < 3 else 0) for each in blocks)


def test_a_rank_alone_hands_nothing_over() -> None:
    graph, run = graph_of("tiny/maverick"), Pass(Work(1, 8, num_logits=1), 8, 2)
    assert forward_on_rank(graph, Layout(), 0, run, chooses=True) == {}
    step = Pass(Work(1, 8, phase="train"), 8, 2)
    stage = stage_on_rank(graph, BF16, Layout(), place_of(Layout(), 0))
    assert training_on_rank(graph, Layout(), 0, stage, step, 1) == {}
