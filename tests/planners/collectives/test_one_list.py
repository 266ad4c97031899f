"""Bytes that are timed are bytes that are planned are bytes that ranks count: all of them come from one list."""

import ast
from pathlib import Path

import pytest

from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from planners.catalog import hardware, quantization
from planners.collectives.communication import communication
from planners.collectives.key_value_ring import key_value_ring
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import stage_traffic
from planners.counts.kv_cache import bytes_per_token
from planners.counts.weights import scheme_of
from planners.device.stages import every_stage
from planners.device.training_state import TrainSetting
from planners.module.runtime_collectives import Pass, forward_on_rank, training_on_rank
from planners.timing.layer_demand import Step
from planners.timing.machine import Machine
from planners.timing.step import StepModel
from planners.timing.training_step import TrainLoad, communication_seconds
from tests.planners.models import graph

BF16 = scheme_of(quantization("bf16"))
NAMES = ("scout", "maverick", "deepseek-v3", "llama-3.1-8b", "gemma-2-27b")
LAYOUTS = (
    Layout(tp=2),
    Layout(tp=4),
    Layout(ep=4),
    Layout(tp=2, ep=4),
    Layout(tp=8),
    Layout(tp=8, ep=4),
    Layout(ep=16),
)
CASES = [
    (name, layout)
    for name in NAMES
    for layout in LAYOUTS
    if layout.ep == 1 or any(node.declaration.routed for node in graph(name).nodes)
]
ROUNDING = 1.0
"""A plan rounds bytes down to whole ones, and bytes of a tier to the nearest: less than one of each row."""


def machine(host_size: int) -> Machine:
    return Machine(hardware("h100-sxm"), host_size)


def timed_seconds(name: str, layout: Layout, step: Step, host_size: int) -> float:
    """Seconds of the links in a step, at their published peaks."""
    model = StepModel(graph(name), BF16, layout, machine(host_size), 2, None)
    return sum(kind.links_seconds for kind in model.time(step).by_kind)


@pytest.mark.parametrize("host_size", [4, 8, 64])
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_decode_step_is_timed_by_the_bytes_that_are_planned(name: str, layout: Layout, host_size: int) -> None:
    """Logits included, inside a host and between hosts."""
    rows = communication(graph(name), layout, host_size)
    inner, outer = machine(host_size).link(1), machine(host_size).link(host_size + 1)
    assert inner is not None
    assert outer is not None
    planned = sum(
        (row.intra_host_bytes_per_token or 0) / inner + (row.inter_host_bytes_per_token or 0) / outer for row in rows
    )
    timed = timed_seconds(name, layout, Step(decode=1, context=64), host_size)
    assert abs(timed - planned) <= 2 * len(rows) * ROUNDING / min(inner, outer)


@pytest.mark.parametrize("host_size", [2, 8, 64])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("scout", Layout(pp=2)),
        ("scout", Layout(tp=2, ep=4, pp=2)),
        ("llama-3.1-8b", Layout(tp=2, pp=4)),
        ("llama-3.1-8b", Layout(tp=8, pp=4)),
    ],
)
def test_a_step_waits_for_every_send_from_stage_to_stage_that_is_planned(
    name: str, layout: Layout, host_size: int
) -> None:
    (row,) = [row for row in communication(graph(name), layout, host_size) if row.axis == "pp"]
    inner, outer = machine(host_size).link(1), machine(host_size).link(host_size + 1)
    assert inner is not None
    assert outer is not None
    planned = (row.intra_host_bytes_per_token or 0) / inner + (row.inter_host_bytes_per_token or 0) / outer
    model = StepModel(graph(name), BF16, layout, machine(host_size), 2, None)
    (sends,) = [kind for kind in model.time(Step(decode=3, context=64)).by_kind if kind.name == "stage to stage"]
    assert sends.count == layout.pp - 1
    assert abs(sends.links_seconds / sends.count - 3 * planned) <= 6 * ROUNDING / min(inner, outer)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_rank_counts_the_bytes_that_are_planned(name: str, layout: Layout) -> None:
    """Of a pass over 3 sequences of 5 tokens, whose last ones' logits are joined; row counts (int32) beside it."""
    work = Work(3, 5, num_logits=1)
    planned = {
        (row.axis, row.collective): row.payload_bytes_per_token or 0 for row in communication(graph(name), layout)
    }
    for rank in (0, layout.num_devices - 1):
        counted = forward_on_rank(graph(name), layout, rank, Pass(work, 5, 2))
        for (axis, operation), payload in planned.items():
            each = 2 * work.num_logit_rows if operation == "all-gather" else work.num_tokens  # our logits are fp32
            beside = _row_counts(name) if operation == "all-to-all" else 0
            assert counted[axis, operation].payload_bytes == each * payload + beside


def _row_counts(name: str) -> int:
    routed = (node.declaration.routed for node in graph(name).nodes if node.scope == "text")
    return sum(4 * experts.num_experts for experts in routed if experts is not None)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_stage_of_a_pipeline_sends_its_part_of_what_one_stage_sends(name: str, layout: Layout) -> None:
    whole = {(row.axis, row.collective): row.payload_bytes_per_token or 0 for row in communication(graph(name), layout)}
    cut = layout.model_copy(update={"pp": 2})
    parts = [forward_on_rank(graph(name), cut, rank, Pass(Work(1, 1), 1, 2)) for rank in (0, cut.num_devices - 1)]
    for key, payload in whole.items():
        beside = _row_counts(name) if key[1] == "all-to-all" else 0
        planned = payload * (2 if key[1] == "all-gather" else 1)  # our logits are fp32
        assert sum(part[key].payload_bytes for part in parts if key in part) == planned + beside


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_training_step_is_timed_by_the_activations_that_are_planned(
    name: str, layout: Layout, checkpointing: Checkpointing, sequence_parallel: bool
) -> None:
    """Ranks of tp send routed tokens once together (sequence parallelism), where the plan's rank sends all of them."""
    train, sequences, length = (
        TrainSetting(checkpointing=checkpointing, sequence_parallel=sequence_parallel),
        layout.num_devices,
        256,
    )
    load = StepTokens.of(train, layout, length, sequences)
    (stage,) = every_stage(graph(name), BF16, layout.tp, layout.ep, 1)
    rows = stage_traffic(graph(name), train, layout, load, stage, 8).rows
    inner, outer = machine(8).link(1), machine(8).link(9)
    assert inner is not None
    assert outer is not None
    step = TrainLoad(
        sequences,
        length,
        layout.num_devices,
        tp=layout.tp,
        ep=layout.ep,
        ep_span=layout.tp * layout.ep,
        checkpointing=checkpointing,
        sequence_parallel=sequence_parallel,
    )
    timed = communication_seconds(graph(name), machine(8), step)
    for axis, prefix, shared in (("tp", "activations", 1), ("ep", "routed tokens", layout.tp)):
        of_axis = [row for row in rows if row.axis == axis and row.what.startswith(prefix)]
        planned = sum((row.intra_host_bytes or 0) / inner + (row.inter_host_bytes or 0) / outer for row in of_axis)
        assert timed[axis] * shared == pytest.approx(planned, rel=1e-6)


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(ep=2, dp=2), Layout(tp=2, ep=2, pp=2)])
def test_a_rank_counts_the_activations_that_are_planned_for_training(layout: Layout) -> None:
    work = Work(2 * layout.dp * layout.ep, 8, phase="train")
    model, train = graph("tiny/scout"), TrainSetting(zero_stage=3, checkpointing="none", gradient_bytes=2)
    for place in range(layout.pp):
        rank = layout.num_devices // layout.pp * place
        stage = every_stage(model, BF16, layout.tp, layout.ep, layout.pp)[place]
        rows = stage_traffic(model, train, layout, StepTokens(work.num_tokens, 2), stage, None).rows
        counted = training_on_rank(model, layout, rank, stage, Pass(work, 8, 2), 2)
        planned = sum(row.payload_bytes for row in rows if row.axis == "tp")
        handed = counted.get(("tp", "all-reduce"))
        assert (handed.payload_bytes if handed else 0) == planned
        assert (planned > 0) == (layout.tp > 1)


def test_collectives_are_listed_in_their_room_alone() -> None:
    """Whoever times or counts one takes it from the list."""
    planners = Path(__file__).parents[3] / "planners"
    makers = {
        path.relative_to(planners).parts[0]
        for path in planners.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Collective"
    }
    assert makers == {"collectives"}


@pytest.mark.parametrize("name", ["scout", "llama-3.1-8b", "gemma-2-27b"])
def test_a_ring_passes_keys_and_values_of_every_layer_three_times(name: str) -> None:
    """Against the cache of the plan, which grows by the same keys and values per token."""
    groups = [group for group in graph(name).groups if group.first.scope == "text" and group.declaration.cache]
    cached = sum(group.count * bytes_per_token(group, Layout(), 2) for group in groups)
    model, some = graph(name), StepTokens(tokens=10, micro_batches=1, piece=1)
    for recomputes in (False, True):
        rings = key_value_ring(model, Layout(cp=4), range(model.num_layers), some, recomputes=recomputes)
        assert sum(each.payload for each in rings) == (3 + recomputes) * 4 * 10 * cached
