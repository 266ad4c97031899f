"""What ranks hand to collectives in a training step is what the plan says, to the byte and to the call."""

from collections import Counter

import pytest
import torch

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.runtime.build import build
from l4spec.runtime.measure.traffic import counting_traffic
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import stage_traffic
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import TrainSetting
from planners.plan_types import CollectiveTraffic
from tests.distributed.world import run_world

SEQUENCES, TOKENS = 8, 32
IN_FP32 = 2
"""The ranks compute in fp32 and the plan counts bf16: activations and gathered weights take twice the bytes."""
Bytes = Counter[tuple[str, str]]
TO_EXPERTS = ("ep", "all-to-all")


def seeing_nothing(name: str) -> LayerGraph:
    """The text model alone: what no token runs through is neither gathered nor has gradients."""
    return l4spec.compile(l4spec.load(name, ["vision=null"]))


def same_ranks(axis: str, layout: Layout) -> str:
    """dp and ep together are one of them where the other is 1."""
    if axis != "dp_ep":
        return axis
    return "ep" if layout.dp == 1 else "dp" if layout.ep == 1 else axis


def stepped(
    _: int, name: str, layout: Layout, checkpointing: Checkpointing = "none", sequence_parallel: bool = False
) -> dict[tuple[str, str], tuple[int, int]]:
    """Calls and bytes by axis and collective of one step on a rank; row counts of the exchange (int32) left out."""
    model = distribute(
        build(seeing_nothing(name), "meta", "fp32"), layout, train=True, sequence_parallel=sequence_parallel
    )
    model.checkpointing = checkpointing
    mesh = model.mesh
    groups = {"dp_ep": mesh.data.group} | {axis: mesh.axis(axis).group for axis in ("tp", "ep", "dp")}
    ids = torch.arange(SEQUENCES * TOKENS).view(SEQUENCES, TOKENS) * 7 % 100
    own = model.own_rows(ids)
    with counting_traffic({axis: group for axis, group in groups.items() if group is not None}) as ledger:
        torch.autograd.backward(model.loss(own, own.roll(-1, 1)))
        model.finish_backward()
    floats = {key: sent for key, sent in ledger.items() if key[2] is not torch.int32}
    return {
        (same_ranks(axis, layout), collective): (sent.calls, sent.payload_bytes)
        for (axis, collective, _), sent in floats.items()
    }


def planned(
    name: str, layout: Layout, checkpointing: Checkpointing, sequence_parallel: bool
) -> tuple[CollectiveTraffic, ...]:
    """The rows of one step of FSDP (ZeRO 3), every sequence of a rank in one micro-batch."""
    graph, own = seeing_nothing(name), SEQUENCES // (layout.dp * layout.ep)
    train = TrainSetting(
        zero_stage=3, checkpointing=checkpointing, micro_batch=own, sequence_parallel=sequence_parallel
    )
    (stage,) = stages(graph, scheme_of(quantization("bf16")), layout.tp, layout.ep, layout.pp)
    return stage_traffic(graph, train, layout, StepTokens.of(train, layout, TOKENS, SEQUENCES), stage, None).rows


def in_fp32(row: CollectiveTraffic) -> int:
    kept = row.what.startswith(("gradients of", "loss"))
    return row.payload_bytes * (1 if kept else IN_FP32)


LAYOUTS = (Layout(tp=2), Layout(ep=2), Layout(dp=2), Layout(tp=2, ep=2), Layout(ep=2, dp=2), Layout(tp=2, dp=2))


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_training_step_sends_what_the_plan_says(name: str, layout: Layout) -> None:
    assert_ranks_send_as_planned(name, layout, "none")


@pytest.mark.parametrize(
    ("checkpointing", "layout"), [("selective", LAYOUTS[5]), ("full", LAYOUTS[5]), ("full", LAYOUTS[3])]
)
def test_what_is_computed_again_is_sent_again(checkpointing: Checkpointing, layout: Layout) -> None:
    """Attention's core sends nothing; blocks send what they sent in the forward pass."""
    assert_ranks_send_as_planned("tiny/maverick", layout, checkpointing)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(tp=2, ep=2), Layout(tp=2, dp=2)], ids=str)
def test_sequence_parallelism_gathers_and_scatters_what_is_planned(
    checkpointing: Checkpointing, layout: Layout
) -> None:
    assert_ranks_send_as_planned("tiny/maverick", layout, checkpointing, sequence_parallel=True)


def assert_ranks_send_as_planned(
    name: str, layout: Layout, checkpointing: Checkpointing, *, sequence_parallel: bool = False
) -> None:
    """Each rank to the byte; tokens to experts together, since a rank sends back as many as came to it."""
    ranks = run_world(layout.num_devices, stepped, name, layout, checkpointing, sequence_parallel)
    expected: Bytes = Counter()
    calls: Bytes = Counter()
    for row in planned(name, layout, checkpointing, sequence_parallel):
        key = (same_ranks(row.axis, layout), row.collective)
        expected[key] += in_fp32(row)
        calls[key] += row.calls
    exchange = [ledger.pop(TO_EXPERTS) for ledger in ranks if TO_EXPERTS in ledger]
    exchanged, calls_of_exchange = expected.pop(TO_EXPERTS, 0), calls.pop(TO_EXPERTS, 0)
    for ledger in ranks:
        assert {key: size for key, (_, size) in ledger.items()} == expected
    assert sum(size for _, size in exchange) == len(ranks) * exchanged
    assert {number for number, _ in exchange} == ({calls_of_exchange} if layout.ep > 1 else set())
