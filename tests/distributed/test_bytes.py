"""What a rank holds is what the plan says, to the byte; a rank is built without the others."""

from collections import defaultdict
from itertools import product

import pytest
import torch

from l4spec.errors import UserError
from l4spec.layers.common.parallel import Axis, leave
from l4spec.runtime.parallel.distribute import build_rank
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.rank import own_nodes
from l4spec.sharding.layout import Layout, place_of
from l4spec.sharding.rules import illegal_reason
from planners.catalog import engine, quantization
from planners.counts.weights import scheme_of
from planners.device.memory import Setting, place
from planners.device.stages import stages
from tests.distributed.whole import graph_from

BF16 = scheme_of(quantization("bf16"))
LAYOUTS = [Layout(tp=tp, ep=ep, pp=pp, dp=dp) for tp, ep, pp, dp in product((1, 2, 4), (1, 2), (1, 3), (1, 2))]
SPECS = ["tiny/scout", "tiny/maverick", "tiny/deepseek", "scout", "compare/llama-3.1-8b"]


def weight_bytes(model: RankModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", SPECS)
def test_the_fullest_rank_of_a_stage_holds_what_the_plan_says(name: str) -> None:
    graph, checked = graph_from(name), 0
    for layout in LAYOUTS:
        if illegal_reason(graph, layout) or (graph.num_layers > 8 and layout.dp > 1):
            continue
        bytes_by_stage: dict[int, int] = defaultdict(int)
        for rank in range(layout.num_devices):
            stage = place_of(layout, rank).pp
            bytes_by_stage[stage] = max(
                bytes_by_stage[stage], weight_bytes(build_rank(graph, Mesh(layout, rank), torch.bfloat16))
            )
        planned = stages(graph, BF16, layout.tp, layout.ep, layout.pp)
        assert {stage.index: stage.weights.total_bytes for stage in planned}.items() <= bytes_by_stage.items(), str(
            layout
        )
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick", "tiny/deepseek"])
@pytest.mark.parametrize("context", [1, 16, 100])
def test_the_caches_of_a_rank_are_the_plans(name: str, context: int) -> None:
    graph = graph_from(name)
    for layout in (Layout(tp=2), Layout(tp=2, ep=2), Layout(dp=2), Layout(pp=2)):
        setting = Setting(graph, BF16, engine("ideal"), None, 2, None, prefill_chunk=8)
        planned = max(use.cache for use in place(setting, layout).uses(context, 4))
        sequences = 4 // (layout.dp * layout.ep)
        ranks = (build_rank(graph, Mesh(layout, rank), torch.bfloat16) for rank in range(layout.num_devices))
        assert planned == max(model.new_cache(sequences, context).num_bytes for model in ranks)


def test_ranks_together_hold_every_element_of_a_stage() -> None:
    graph, layout = graph_from("tiny/maverick"), Layout(tp=2, ep=2, pp=2)
    covered: dict[str, set[tuple[tuple[int, int], ...]]] = defaultdict(set)
    for rank in range(layout.num_devices):
        for name, shard in build_rank(graph, Mesh(layout, rank), torch.float32).shards.items():
            covered[name].add(tuple((run.start, run.stop) for run in shard.region))
    for node, parameter in graph.parameters():
        if parameter.tied_to is None:
            regions = covered.pop(f"{node.id}.{parameter.name}")
            sizes = [torch.Size([stop - start for start, stop in region]).numel() for region in regions]
            assert sum(sizes) == torch.Size(parameter.shape).numel()
    assert not covered


def test_any_rank_of_the_published_cluster_is_built_alone_and_holds_what_the_plan_says() -> None:
    graph, layout = graph_from("behemoth"), Layout(tp=8, ep=16, pp=8, dp=32)
    assert layout.num_devices == 32_768
    planned = {s.index: s.weights.total_bytes for s in stages(graph, BF16, layout.tp, layout.ep, layout.pp)}
    for rank in (0, 17_123, 32_767):
        model = build_rank(graph, Mesh(layout, rank), torch.bfloat16)
        stage = place_of(layout, rank).pp
        alike = stage if stage in planned else min(set(planned) - {0, layout.pp - 1})  # equal stages are planned once
        assert weight_bytes(model) == planned[alike]


def test_a_rank_that_was_built_alone_cannot_send() -> None:
    with pytest.raises(RuntimeError, match="built alone"):
        leave(torch.ones(2), Axis(2, 0))


def test_a_layout_that_the_model_does_not_allow_is_refused_with_the_planners_reason() -> None:
    graph = graph_from("tiny/scout")
    layout = Layout(tp=4)
    reason = illegal_reason(graph, layout)
    assert reason is not None
    with pytest.raises(UserError, match="does not divide 10") as caught:
        build_rank(graph, Mesh(layout, 0), torch.float32)
    assert reason in str(caught.value)


def test_stages_together_run_every_node_once() -> None:
    graph, layout = graph_from("scout"), Layout(pp=5)
    nodes = [node.id for rank in range(5) for node in own_nodes(graph, Mesh(layout, rank))]
    assert sorted(nodes) == sorted(node.id for node in graph.nodes)
