"""Training memory: states by ZeRO stage, activations by checkpointing, and between what measurements bracket."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.device.activations import kept_per_token
from planners.device.stages import stages
from planners.device.training_state import TrainSetting, stage_state
from planners.plan import plan
from planners.plan_types import DeviceMemory
from tests.planners.models import graph

GIB = 1 << 30
DENSE = {"tp": 1, "ep": 1, "pp": 1}


def trained(model: LayerGraph, train: TrainSetting, **arguments: Any) -> DeviceMemory:
    options = {
        name: value
        for name, value in asdict(train).items()
        if name not in ("trainable", "with_modules", "with_reference", "lora", "base")
    }
    options["sequence_parallel"] = "on" if train.sequence_parallel else "off"
    return plan(model, mode="train", **options, **arguments).memory_per_device


@pytest.mark.parametrize(("stage", "shared"), [(0, ()), (1, ("o",)), (2, ("o", "g")), (3, ("o", "g", "w"))])
def test_each_zero_stage_divides_one_more_state_among_the_data_parallel_ranks(
    stage: int, shared: tuple[str, ...]
) -> None:
    params = 8_030_261_248
    memory = trained(graph("llama-3.1-8b"), TrainSetting(zero_stage=stage), gpus="8xH200", dp=8, batch=8, **DENSE)
    states = {"w": (memory.weights_bytes, 2), "g": (memory.gradient_bytes, 4), "o": (memory.optimizer_bytes, 12)}
    for name, (state, bytes_a_parameter) in states.items():
        assert state == params * bytes_a_parameter // (8 if name in shared else 1)
    assert memory.kv_cache_bytes == 0


@pytest.mark.parametrize(("optimizer", "bytes_a_parameter"), [("adamw", 12), ("adamw-bf16", 4), ("sgd", 4)])
def test_optimizers_keep_their_states(optimizer: str, bytes_a_parameter: int) -> None:
    memory = trained(graph("mobilellm-r1-950m"), TrainSetting(optimizer=optimizer, gradient_bytes=2))
    assert memory.optimizer_bytes == 949_685_760 * bytes_a_parameter
    assert memory.gradient_bytes == 949_685_760 * 2


def test_experts_are_sharded_over_the_ranks_that_hold_the_same_ones() -> None:
    """ep=4, dp=2: a device has a quarter of the experts, whose states two ranks share; the rest is shared by eight."""
    params = plan(graph("scout")).params
    experts, dense = params.by_part["routed_experts"] // 4, params.total - params.by_part["routed_experts"]
    memory = trained(graph("scout"), TrainSetting(zero_stage=3), gpus="8xH200", tp=1, ep=4, pp=1, dp=2, batch=8)
    assert memory.weights_bytes == 2 * (experts // 2 + -(-dense // 8))


def test_recomputing_keeps_less_and_more_tokens_keep_more() -> None:
    model, none = graph("llama-3.1-8b"), TrainSetting(zero_stage=3, checkpointing="none")
    full = replace(none, checkpointing="full")
    for context in (1024, 8192):
        kept = [trained(model, t, gpus="8xH100", dp=8, batch=8, context=context, **DENSE) for t in (full, none)]
        assert kept[0].activation_bytes < kept[1].activation_bytes
    longer = trained(model, none, gpus="8xH100", dp=8, batch=8, context=8192, **DENSE).activation_bytes
    assert longer == 8 * trained(model, none, gpus="8xH100", dp=8, batch=8, context=1024, **DENSE).activation_bytes


def test_the_first_stage_of_a_pipeline_keeps_as_many_micro_batches_as_there_are_stages() -> None:
    """One forward, one backward (arXiv:2104.04473): with fewer micro-batches than stages only those are in flight."""
    model, train = graph("scout"), TrainSetting(checkpointing="none")
    kept = {
        batch: trained(model, train, gpus="16xH200", tp=1, ep=1, pp=16, dp=1, batch=batch, context=1024)
        for batch in (1, 4, 16, 64)
    }
    assert kept[1].activation_bytes <= kept[4].activation_bytes <= kept[16].activation_bytes
    assert kept[16].activation_bytes == kept[64].activation_bytes


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_layer_of_gpt_keeps_what_is_published(tp: int) -> None:
    """arXiv:2205.05198, table 2, bytes a token and hidden size with selective recomputation: 34; 10 + 24 / t; 34 / t.

    Two of the 34 are masks of dropout after attention and feed-forward, which no run here has.
    """
    model = graph("gpt-3-175b")
    hidden = model.hidden_size
    (plain, *_), (split, *_) = (kept_per_token(model, tp, 1, "selective", split=split) for split in (False, True))
    assert plain.kept == hidden * (8 + 24 // tp)
    assert split.kept == hidden * 32 // tp
    (block, *_) = kept_per_token(model, tp, 1, "full", split=True)
    assert block.kept == 2 * hidden // tp


def test_sequence_parallelism_leaves_more_memory_free_with_every_checkpointing() -> None:
    for checkpointing in CHECKPOINTING:
        train = TrainSetting(zero_stage=3, checkpointing=checkpointing)
        plain, split = (
            trained(graph("scout"), replace(train, sequence_parallel=s), gpus="8xH200", tp=8, ep=1, pp=1, dp=1, batch=8)
            for s in (False, True)
        )
        assert split.activation_bytes < plain.activation_bytes
        assert split.total_bytes - split.activation_bytes == plain.total_bytes - plain.activation_bytes


@pytest.mark.parametrize("measured_gib", [67.0, 62.0])
def test_selective_checkpointing_of_llama_3_1_8b_lies_between_all_and_nothing(measured_gib: float) -> None:
    """FSDP on 128 GPUs, 2 sequences of 8,192 each: pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md."""
    full = TrainSetting(zero_stage=3, checkpointing="full", micro_batch=2)
    least, most = (
        trained(graph("llama-3.1-8b"), train, gpus="128xH100", dp=128, batch=256, context=8192, **DENSE).total_bytes
        for train in (full, replace(full, checkpointing="none"))
    )
    assert least < measured_gib * GIB < most


def test_two_layers_of_scout_without_checkpointing_take_about_what_was_measured() -> None:
    """145.55 GiB on 4 x B200, FSDP 4, EP 4, 8 sequences of 8,192 each: pytorch/ao torchao/prototype/moe_training.

    torch.compile fuses what eager autograd keeps, so the plan may lie above, by up to a tenth.
    """
    two_layers = graph("scout", "text.layers=[{attention: local, ffn: moe, repeat: 2}]")
    train = TrainSetting(zero_stage=3, checkpointing="none", micro_batch=8)
    result = trained(two_layers, train, gpus="4xB200", tp=1, ep=4, pp=1, dp=1, batch=32, context=8192)
    assert 145.55 <= result.total_bytes / GIB <= 1.1 * 145.55


def test_the_simplest_training_has_the_fewest_devices_a_replica() -> None:
    planned = plan(graph("mobilellm-r1-950m"), gpus="8xH100", mode="train", batch=8, objective="simplest")
    assert (planned.layout.dp, planned.fits) == (8, True)


def test_suggestions_for_training_are_about_training() -> None:
    planned = plan(
        graph("llama-3.1-8b"), gpus="8xH100", mode="train", zero_stage=0, checkpointing="none", batch=8, dp=8
    )
    assert planned.fits is False
    changes = {suggestion.change: suggestion for suggestion in planned.suggestions}
    assert "ZeRO 3 and full activation checkpointing" in changes
    assert "--zero-stage 3" in changes["ZeRO 3 and full activation checkpointing"].command
    assert not any("weights" in change and "quantization" in change for change in changes)


def test_what_is_frozen_has_no_gradient_to_gather() -> None:
    """ZeRO 2 and 3 gather the gradient of a block that is trained; ZeRO 3 the weights of every block."""
    model, layout = graph("llama-3.1-8b"), Layout(dp=8)
    (stage,) = stages(model, scheme_of(quantization("bf16")), 1, 1, 1)
    head, block = 128_256 * 4096, 218_112_000

    def gathered(zero_stage: int, *trainable: str) -> int:
        train = TrainSetting(zero_stage=zero_stage, trainable=trainable)
        return stage_state(model, train, layout, stage).gathered

    assert gathered(2, "text.layers") == 2 * block
    assert gathered(3, "text.layers") == 2 * (head + block) + 2 * block
    assert gathered(3) == 2 * (head + block) + 2 * head
