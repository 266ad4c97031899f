"""How training keeps its state is chosen with the layout: exactly, with room, and never better than was measured."""

from itertools import product
from typing import Any

import pytest

from l4spec.graph.build import build_graph
from l4spec.layers.common.checkpointing import CHECKPOINTING
from planners.plan import plan
from planners.plan_types import Plan
from planners.search.training_choice import MICRO_BATCHES, ROOM, ZERO_STAGES
from planners.timing.efficiency import training_efficiency
from tests.cpu_time import takes_at_most
from tests.planners.models import graph

SMALL: dict[str, Any] = {"mode": "train", "context": 4096, "batch": 128}


def seconds(planned: Plan) -> float:
    assert planned.latency is not None
    return planned.latency.step_time_seconds or 0.0


def compared(planned: Plan) -> float:
    """Nothing was measured with ZeRO 2 or 3 between hosts: such times are compared with the error of one in ten."""
    asked, layout, cluster = planned.deployment, planned.layout, planned.cluster
    assert cluster is not None
    factors = training_efficiency(cluster.hardware)
    error = factors.error("step_time") if factors else None
    assert error is not None
    between_hosts = layout.num_devices // layout.pp > cluster.gpus_per_host
    return seconds(planned) * (1 + error.p90 if (asked.zero_stage or 0) >= 2 and between_hosts else 1)


def is_comfortable(planned: Plan) -> bool:
    memory = planned.memory_per_device
    assert memory.headroom_bytes is not None
    assert memory.capacity_bytes is not None
    return memory.headroom_bytes >= ROOM * memory.capacity_bytes


@pytest.mark.parametrize(
    ("spec", "gpus", "precision"),
    [
        ("llama-3.1-8b", "8xH100", "bf16"),
        ("scout", "32xH100", "fp8"),
        ("olmoe-1b-7b", "2xA100", "bf16"),
        ("deepseek-v3", "512xH100", "bf16"),
    ],
)
def test_the_setting_of_a_layout_is_that_of_brute_force(spec: str, gpus: str, precision: str) -> None:
    open_ = plan(graph(spec), gpus=gpus, precision=precision, **SMALL)
    rows = [row for row in open_.layouts if row.step_time_seconds is not None]
    assert rows
    for row in rows[:: max(1, len(rows) // 3)]:
        degrees = {axis: getattr(row.layout, axis) for axis in ("tp", "ep", "pp", "dp")}
        every = [
            plan(
                graph(spec),
                gpus=gpus,
                precision=precision,
                zero_stage=z,
                checkpointing=c,
                micro_batch=m,
                **degrees,
                **SMALL,
            )
            for z, c, m in product((0, *ZERO_STAGES), CHECKPOINTING, MICRO_BATCHES)
        ]
        fitting = [planned for planned in every if planned.fits]
        best = min([p for p in fitting if is_comfortable(p)] or fitting, key=compared)
        assert row.step_time_seconds == pytest.approx(seconds(best))
        kept = row.training
        assert kept is not None
        same = [
            p
            for p in every
            if (p.deployment.zero_stage, p.deployment.activation_checkpointing, p.deployment.micro_batch)
            == (kept.zero_stage, kept.activation_checkpointing, kept.micro_batch)
        ]
        assert [p.memory_per_device.total_bytes for p in same] == [row.total_bytes]


def test_what_is_given_is_kept_and_what_is_open_is_reported() -> None:
    planned = plan(graph("scout"), gpus="64xH100", checkpointing="full", **SMALL)
    assert planned.deployment.left_open == ("zero_stage", "micro_batch")
    assert {row.training.activation_checkpointing for row in planned.layouts if row.training} == {"full"}
    everything = plan(graph("scout"), gpus="64xH100", checkpointing="full", zero_stage=0, micro_batch=2, **SMALL)
    asked = everything.deployment
    assert (asked.zero_stage, asked.activation_checkpointing, asked.micro_batch, asked.left_open) == (0, "full", 2, ())


def test_the_plan_is_that_of_its_own_answers() -> None:
    """Chosen and then fixed, layout and state give the same plan."""
    chosen = plan(graph("maverick"), gpus="256xH100", **SMALL)
    asked = chosen.deployment
    fixed = plan(
        graph("maverick"),
        gpus="256xH100",
        zero_stage=asked.zero_stage,
        checkpointing=asked.activation_checkpointing,
        micro_batch=asked.micro_batch,
        **{axis: getattr(chosen.layout, axis) for axis in ("tp", "ep", "pp", "dp")},
        **SMALL,
    )
    assert seconds(fixed) == seconds(chosen)
    assert fixed.memory_per_device == chosen.memory_per_device
    assert fixed.train_traffic == chosen.train_traffic


@pytest.mark.parametrize("spec", ["llama-3.1-8b", "scout"])
def test_layouts_as_fast_are_marked_and_the_chosen_one_has_the_fewest_stages(spec: str) -> None:
    planned = plan(graph(spec), gpus="64xH100", **SMALL)
    marked = [row for row in planned.layouts if row.as_fast]
    assert planned.layout in [row.layout for row in marked]
    assert planned.layout.pp == min(row.layout.pp for row in marked)
    assert is_comfortable(planned)


def test_what_does_not_fit_is_planned_with_the_least_memory_and_more_gpus_are_suggested() -> None:
    planned = plan(graph("scout"), gpus="8xH100", **SMALL)
    assert planned.fits is False
    assert (planned.deployment.zero_stage, planned.deployment.activation_checkpointing) == (3, "full")
    changes = [suggestion.change for suggestion in planned.suggestions]
    assert any("GPUs instead of 8" in change for change in changes)
    assert not any("ZeRO" in change for change in changes)


def test_zero_3_gathers_two_blocks_and_a_gradient() -> None:
    """Llama 3.1 8B over 8 ranks: the head, 128,256 x 4,096, is the largest, and beside it a block is at work."""
    options: dict[str, Any] = {"tp": 1, "ep": 1, "pp": 1, "dp": 8, "micro_batch": 1, "checkpointing": "full"}
    head = 128_256 * 4096
    block = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14_336 * 4096 + 2 * 4096
    memory = {
        stage: plan(graph("llama-3.1-8b"), gpus="8xH100", zero_stage=stage, **options, **SMALL).memory_per_device
        for stage in range(4)
    }
    gathered = {stage: kept.gathered_bytes for stage, kept in memory.items()}
    assert gathered == {0: 0, 1: 0, 2: 2 * head, 3: 2 * (head + block) + 2 * head}


@pytest.mark.parametrize(
    ("spec", "options", "tokens", "gpu_hours"),
    [
        ("llama-3.1-405b", {"gpus": "16384xH100", "batch": 2048}, 15.6e12, 30.84e6),
        ("llama-65b", {"gpus": "2048xA100", "context": 2048, "batch": 2048}, 1.4e12, 1_022_362),
        ("scout", {"gpus": "16384xH100", "batch": 2048}, 40e12, 5.0e6),
        ("maverick", {"gpus": "512xH100", "batch": 1024}, 22e12, 22e12 / 1_895_847 * 512 / 3600),
        ("maverick", {"gpus": "512xH100", "batch": 1024, "precision": "fp8"}, 22e12, 22e12 / 2_176_574 * 512 / 3600),
        (
            "deepseek-v3",
            {"gpus": "2048xH100", "context": 4096, "batch": 15_360, "precision": "fp8"},
            14.8e12,
            2.664e6,
        ),
    ],
)
def test_no_plan_beats_a_published_run_by_more_than_its_error(
    spec: str, options: dict[str, Any], tokens: float, gpu_hours: float
) -> None:
    """Model cards of Llama 3.1 and Scout; arXiv:2302.13971, table 15; arXiv:2412.19437, table 1 (on H800); for Maverick
    the tokens per second of NVIDIA/dgxc-benchmarking v25.05, which are faster than its card's 2.38M GPU-hours.

    For Scout the number of GPUs is not published. Llama 3.1 8B and 70B, whose cards have 1.46M and 7.0M GPU-hours, are
    left out for that: 8B would be 142 TFLOP/s of a GPU, less than any measured row. Planned when this was written:
    1.11, 1.48, 0.78, 0.97, 0.85 and 1.36 times the published hours.
    """
    planned = plan(graph(spec), mode="train", train_tokens=int(tokens), **options)
    assert planned.latency is not None
    hours, error = planned.latency.gpu_hours, next(e for e in planned.latency.errors if e.metric == "step_time")
    assert hours is not None
    assert hours * (1 + error.p90) >= gpu_hours


def test_choosing_takes_at_most_two_seconds() -> None:
    plan(graph("maverick"), gpus="8xH100")
    models = [build_graph(graph("maverick").model) for _ in range(3)]
    assert takes_at_most(2, lambda: plan(models.pop(), gpus="16384xH100", mode="train", batch=2048))
