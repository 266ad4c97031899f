"""Run apart: every kind of l4spec planned, timed, sharded and measured under its own name, and under another one.

The kinds of the other name are copies of the folders in `l4spec/layers`, registered by entry points as those of any
other package are: nothing in them is an instance of a class of l4spec. Prints {law: [what differs]} as JSON.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import torch

import l4spec
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers import KINDS, declaration_of
from l4spec.layers.declaration import Work
from l4spec.quantization.tensors import scheme_of
from l4spec.runtime.build import build
from l4spec.runtime.measure.run import RunMeasurement, RunShape, measure_run
from l4spec.sharding.layout import Layout, place_of
from l4spec.sharding.rules import cuts_of, region_of
from l4spec.verification.measure import expert_rows
from planners import plan
from planners.catalog import quantization
from planners.module.activation_ledger import activation_bytes
from planners.module.executed import executed_rows
from planners.module.runtime_collectives import Pass, forward_on_rank, training_on_rank
from planners.module.runtime_rank import executed_on_rank, stage_on_rank, weights_on_rank
from planners.module.step_time import EagerModel
from tests.contracts.kinds_everywhere import GRAPHS, RENAMED
from tests.planners.module.made_up import made_up

LAYOUTS = (Layout(), Layout(tp=2), Layout(dp=2), Layout(ep=2), Layout(tp=2, pp=2), Layout(cp=2))
WORK = Work(2, 37, num_logits=1)
Law = Callable[[LayerGraph], Any]


def renamed(graph: LayerGraph) -> LayerGraph:
    """The graph with the same layers of the copied kinds."""
    return LayerGraph(graph.model, tuple(map(_renamed, graph.nodes)), graph.edges)


def _renamed(node: LayerNode) -> LayerNode:
    kind = KINDS[RENAMED + node.kind]
    spec = kind.spec.model_validate(node.spec.model_dump() | {"kind": kind.name})
    return replace(node, spec=spec, declaration=declaration_of(spec, node.width))


def plans(graph: LayerGraph) -> Iterator[Any]:
    """Plans of serving and training on several layouts, time included."""
    options: tuple[dict[str, Any], ...] = (
        {"gpus": "4xH100"},
        {"gpus": "8xH100", "quantization": "fp8", "engine": "vllm", "batch": 16, "output_tokens": 64, "context": 256},
        {"gpus": "16xH100", "mode": "train", "batch": 64},
        *(
            {"gpus": "4xH100", "mode": mode, **layout.model_dump()}
            for layout in LAYOUTS[1:4]
            for mode in ("serve", "train")
        ),
    )
    for each in options:
        asked = {name: value for name, value in each.items() if name not in ("tp", "ep", "pp", "dp", "cp") or value > 1}
        try:
            yield plan(graph, **asked).model_dump(mode="json")
        except l4spec.UserError as error:
            yield str(error)


def memory(graph: LayerGraph) -> Any:
    """The allocation ledger of our module, in both number formats and without tiles."""
    tiles = (0, 2) if graph.model.vision else (0,)
    return [activation_bytes(graph, WORK, num_tiles=n, item_bytes=size) for n in tiles for size in (2, 4)]


def times(graph: LayerGraph) -> Any:
    """Predicted times of our module, piece by piece, and what it executes."""
    profile = made_up("fp32", "bf16").eager
    assert profile is not None
    works = (WORK, Work(2, 1, 40, phase="decode", num_logits=1), Work(1, 1, 3, phase="decode"))
    seconds = [EagerModel(graph, profile, dtype).seconds(work) for dtype in ("fp32", "bf16") for work in works]
    return seconds, [row.flops for row in executed_rows(graph, WORK._replace(phase="train"))]


def shards(graph: LayerGraph) -> Iterator[Any]:
    """What each rank of each layout holds, computes and hands to collectives."""
    scheme = scheme_of(quantization("bf16"))
    for layout in LAYOUTS:
        if plan_problem(graph, layout):
            continue
        for rank in range(layout.num_devices):
            place = place_of(layout, rank)
            yield [region_of(node, p, layout, place) for node, p in graph.parameters()]
            yield [cuts_of(node, layout) for node in graph.nodes]
            yield asdict(weights_on_rank(graph, scheme, layout, rank))
            yield [row.flops for row in executed_on_rank(graph, layout, rank, WORK, num_earlier=20 * place.cp)]
            yield forward_on_rank(graph, layout, rank, Pass(WORK, 37, 2))
            stage = stage_on_rank(graph, scheme, layout, place)
            if layout.cp == 1:
                yield training_on_rank(graph, layout, rank, stage, Pass(WORK._replace(phase="train"), 37, 2), 2)


def plan_problem(graph: LayerGraph, layout: Layout) -> bool:
    """Whether the model does not allow a layout."""
    from l4spec.sharding.rules import illegal_reason

    return illegal_reason(graph, layout) is not None


def runs(graph: LayerGraph) -> Iterator[Any]:
    """What a run of the module measures, times apart, and its logits."""
    model = build(graph, dtype="fp32", seed=3)
    tiles = 2 if graph.model.vision else 0
    all_runs = measure_run(model, RunShape(38, 0, 2, tiles, training=True, cache_lengths=(38,)))
    yield {f.name: getattr(all_runs, f.name) for f in fields(RunMeasurement) if "second" not in f.name}
    yield [
        row.model_dump() for row in expert_rows(graph, RunShape(38, 0, 2, tiles), all_runs.expert_load, is_known=True)
    ]
    with torch.no_grad():
        yield model(torch.arange(12)[None] % 7).double().sum().item()


LAWS: dict[str, Law] = {"plans": plans, "memory": memory, "times": times, "shards": shards, "runs": runs}


def differences(law: Law, graph: LayerGraph) -> list[str]:
    """Where the law's numbers differ between the two names; at most three places."""
    ours, theirs = (_described(law(each)) for each in (graph, renamed(graph)))
    lines = zip(ours.split(", "), theirs.split(", "), strict=False)
    return [f"{graph.name}: {a} became {b}" for a, b in lines if a != b][:3]


def _described(value: Any) -> str:
    plain = repr(list(value) if isinstance(value, Iterator) else value)
    return re.sub(rf"{RENAMED}|Renamed", "", plain)


def main() -> int:
    """Compare every law on every graph."""
    graphs = [make() for make in GRAPHS]
    kinds = {node.kind for graph in graphs for node in graph.nodes}
    result = {name: [line for graph in graphs for line in differences(law, graph)] for name, law in LAWS.items()}
    print(json.dumps(result | {"kinds": sorted(kinds)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
