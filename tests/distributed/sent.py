"""What ranks hand to collectives, held against the plan's rows: to the byte, and call by call where the plan counts so.

The ranks compute in fp64. The plan counts activations, gathered weights and the logits of a forward pass in bf16, so
they take four times its bytes; the loss, its logits and gradients in fp32, which take twice. Only what the plan says
that it leaves out stands here: whole numbers, the padding of uneven shards, and how the loss is told to all ranks.
"""

from collections import Counter
from math import prod

from torch import dtype as Dtype

from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.measure.traffic import Ledger
from l4spec.sharding.layout import Layout, MeshCoordinate
from l4spec.sharding.rules import region_of, stage_of
from planners.catalog import quantization
from planners.collectives.communication import communication
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import BALANCE, stage_traffic
from planners.counts.weights import scheme_of
from planners.device.stages import PipelineStage, every_stage
from planners.device.training_state import TrainSetting
from tests.distributed.anywhere import Case, RankResult
from tests.distributed.whole import graph_from

Key = tuple[str, str]
NARROW, WIDE = 4, 2
"""Times the plan's bytes of a bf16 number, and of one in fp32."""
FP64 = 8
TO_EXPERTS = ("ep", "all-to-all")
BESIDE_TOKENS = {("ep", "all-to-all"), ("data", "all-gather"), ("data", "all-reduce")}
"""Where whole numbers travel: rows for each expert, choices that fill a capacity, labels that count."""


def merged(axis: str, layout: Layout) -> str:
    """One name for the ranks of dp, of ep and of both where those are the same, and for parts of tp."""
    if axis in ("dp", "ep", "dp_ep"):
        return axis if layout.dp > 1 and layout.ep > 1 else "data"
    return axis.partition("/")[0]


def floats(ledger: Ledger, layout: Layout) -> tuple[Counter[Key], Counter[Key]]:
    """Bytes and calls by axis and collective, whole numbers left out; all-to-all is ep's alone."""
    sizes, calls = Counter[Key](), Counter[Key]()
    for (axis, collective, kind), sent in ledger.items():
        key = TO_EXPERTS if collective == "all-to-all" else (merged(axis, layout), collective)
        if _is_whole(kind):
            beside = key if key == TO_EXPERTS else ("data", collective)
            assert beside in BESIDE_TOKENS, f"whole numbers over {axis} by {collective}"
            continue
        sizes[key] += sent.payload_bytes
        calls[key] += sent.calls
    return +sizes, +calls


def _is_whole(kind: Dtype) -> bool:
    return not kind.is_floating_point


def check_forward(case: Case, ranks: list[RankResult], phase: str, tokens: int) -> None:
    """Each sequence's `tokens` tokens at once or one by one, with the logits of all of them."""
    layout, number = case.layout, tokens * case.sequences // case.data_ranks
    planned = Counter[Key]()
    for row in communication(graph_from(case.text), layout):
        assert row.payload_bytes_per_token is not None
        planned[row.axis, row.collective] += row.payload_bytes_per_token * number * NARROW
    sent_by_place = {rank.place: floats(rank.sent[phase], layout)[0] for rank in ranks}
    exchanged = Counter[int]()
    for place, sizes in sent_by_place.items():
        exchanged[place.pp] += sizes.pop(TO_EXPERTS, 0)
    assert max(exchanged.values()) == planned.pop(TO_EXPERTS, 0) * len(ranks) // layout.pp
    for key in planned.keys() | {key for sizes in sent_by_place.values() for key in sizes}:
        by_stage = [
            {sizes[key] for place, sizes in sent_by_place.items() if place.pp == stage} for stage in range(layout.pp)
        ]
        assert all(len(sizes) == 1 for sizes in by_stage), f"{key} differs between ranks of a stage"
        assert max(max(sizes) for sizes in by_stage) == planned[key], f"{phase}: {key}"


def check_training(case: Case, ranks: list[RankResult]) -> None:
    """Each rank of the largest shards to the byte, the others no more; tokens to experts together."""
    graph, layout = graph_from(case.text), case.layout
    stages = every_stage(graph, scheme_of(quantization("bf16")), layout.tp, layout.ep, layout.pp)
    exchanged, wanted_together = Counter[int](), Counter[int]()
    for rank in ranks:
        sizes, calls = planned_step(case, graph, rank.place, stages[rank.place.pp])
        sent_bytes, found_calls = floats(rank.sent["train"], layout)
        exchanged[rank.place.pp] += sent_bytes.pop(TO_EXPERTS, 0)
        wanted_together[rank.place.pp] += sizes.pop(TO_EXPERTS, 0)
        for key in sent_bytes.keys() | sizes.keys():
            if rank.place.tp == rank.place.dp == rank.place.ep == 0:
                assert sent_bytes[key] == sizes[key], (
                    f"{key} at {rank.place}: {sent_bytes[key]} sent, {sizes[key]} planned"
                )
            assert sent_bytes[key] <= sizes[key], f"{key} at {rank.place}"
        counted = {key: number for key, number in calls.items() if key[0] in ("tp", "pp", "ep")}
        assert {key: found_calls[key] for key in counted} == counted, f"calls at {rank.place}"
    assert exchanged == wanted_together


def planned_step(
    case: Case, graph: LayerGraph, place: MeshCoordinate, stage: PipelineStage
) -> tuple[Counter[Key], Counter[Key]]:
    """Bytes and calls of a rank in a step by FSDP (ZeRO 3), nothing recomputed."""
    layout, own = case.layout, case.sequences // case.data_ranks
    train = TrainSetting(zero_stage=3, checkpointing="none", gradient_bytes=4, micro_batch=own // case.microbatches)
    load = StepTokens(own * case.tokens, case.microbatches)
    sizes, calls = Counter[Key](), Counter[Key]()
    for row in stage_traffic(graph, train, layout, load, stage, None).rows:
        key = TO_EXPERTS if row.collective == "all-to-all" else (merged(row.axis, layout), row.collective)
        is_fp32 = row.what.startswith(("gradients of", "loss", *BALANCE))  # planned in fp32, the rest in bf16
        sizes[key] += row.payload_bytes * (WIDE if is_fp32 else NARROW)
        calls[key] += row.calls
    for key, size in (*_padding(case, graph, place), *_telling(case, graph, place)):
        sizes[key] += size
        calls[key] += 1
    return +sizes, +calls


def _padding(case: Case, graph: LayerGraph, place: MeshCoordinate) -> list[tuple[Key, int]]:
    """Of shards that dp x ep ranks, or dp ranks of experts, cannot divide evenly along their first dim (FSDP2)."""
    layout, collectives = case.layout, []
    for node, parameter in graph.parameters():
        if parameter.buffer or (parameter.tied_to and layout.pp == 1) or stage_of(graph, node, layout.pp) != place.pp:
            continue
        axis = "dp" if parameter.is_per_expert else "dp_ep"
        ranks = layout.dp if parameter.is_per_expert else case.data_ranks
        first, *rest = map(len, region_of(node, parameter, layout, place))
        more = (-first % ranks) * prod(rest) * case.microbatches * FP64
        gathers = 2 if node.layer is not None else 1
        collectives += [((merged(axis, layout), "all-gather"), more * gathers)]
        collectives += [((merged(axis, layout), "reduce-scatter"), more)]
    return [(key, size) for key, size in collectives if size]


def _telling(case: Case, graph: LayerGraph, place: MeshCoordinate) -> list[tuple[Key, int]]:
    """The loss to data-parallel ranks and other stages, and between the ends what each makes of a tied table."""
    layout = case.layout
    collectives = [((merged("dp_ep", layout), "all-reduce"), FP64)] if case.data_ranks > 1 else []
    if layout.pp > 1:
        collectives.append((("pp", "broadcast"), FP64))
        if graph.model.text.head.tied and place.pp in (0, layout.pp - 1):
            table = next(node for node in graph.nodes if node.role == "embedding")
            rows, width = map(len, region_of(table, table.declaration.parameters[0], layout, place))
            first = min(rows, -(-rows // case.data_ranks)) if place.dp == place.ep == 0 else rows
            collectives.append((("pp", "send"), first * width * FP64))
    return collectives
