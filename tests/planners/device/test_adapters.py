"""Adapters in plans of training: parameters as published, bytes of a device, what ranks send, and wrong inputs."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.graph.adapters import Lora, adapters_of, count_adapters
from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import stage_traffic
from planners.counts.weights import scheme_of, weigh
from planners.device.stages import stages
from planners.device.training_state import StageState, TrainSetting, stage_state, trained_on_device
from planners.evidence.rows import PUBLISHED, read_rows
from planners.evidence.training_memory import predict_training_memory
from planners.plan import plan
from tests.planners.models import graph

LORA = Lora(16)
BF16, NF4, NF4_FP32 = (scheme_of(quantization(name)) for name in ("bf16", "nf4", "nf4-fp32"))
SET = TrainSetting(checkpointing="none", lora=LORA)


def state_of(name: str, train: TrainSetting, layout: Layout) -> StageState:
    """State of the first device of the last stage."""
    placed = stages(graph(name), train.base or BF16, layout.tp, layout.ep, layout.pp)
    return stage_state(graph(name), train, layout, placed[-1])


@pytest.mark.parametrize(
    ("model", "lora", "params"),
    [
        ("llama-2-7b", Lora(8, ("q_proj", "v_proj")), 4_194_304),  # lit-gpt tutorials/resource-tables.md
        ("llama-2-13b", Lora(8, ("q_proj", "v_proj")), 6_553_600),
        ("llama-3.1-8b", Lora(16), 41_943_040),  # peft's all-linear of Llama-3.1-8B, as its model cards print it
        ("llama-3.1-8b", Lora(8, ("q_proj", "v_proj")), 3_407_872),  # and of peft's default targets
    ],
)
def test_adapters_have_the_published_number_of_parameters(model: str, lora: Lora, params: int) -> None:
    assert count_adapters(graph(model), lora) == params


def test_each_expert_of_a_stack_has_its_own_adapter() -> None:
    """Scout: 48 layers of 16 experts, 5120 by 8192, three tensors each."""
    assert count_adapters(graph("scout"), Lora(4, ("experts",))) == 48 * 16 * 3 * 4 * (5120 + 8192)


def test_frozen_weights_have_neither_gradients_nor_optimizer_state() -> None:
    params, adapters = 8_030_261_248, 41_943_040
    state = state_of("llama-3.1-8b", SET, Layout())
    assert state.weights == 2 * (params + adapters)
    assert (state.gradients, state.optimizer, state.gathered) == (4 * adapters, 12 * adapters, 0)


@pytest.mark.parametrize("base", [NF4, NF4_FP32])
def test_a_packed_base_weighs_what_its_scheme_does_and_one_tensor_is_unpacked(base: Any) -> None:
    state = state_of("llama-3.1-8b", replace(SET, base=base), Layout())
    assert state.weights == weigh(graph("llama-3.1-8b"), base).bytes + 2 * 41_943_040
    assert state.gathered == 2 * 4096 * 14336


def test_double_quantization_saves_three_eighths_of_a_bit() -> None:
    """arXiv:2305.14314, section 3: 0.5 bits a weight for scales in fp32, 0.127 for nested ones (0.125 counted here)."""
    model = graph("llama-3.1-8b")
    packed = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    saved = weigh(model, NF4_FP32).bytes - weigh(model, NF4).bytes
    assert saved == packed * (0.5 - 0.125) / 8


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_cuts_one_half_of_an_adapter(tp: int) -> None:
    """B of what is cut along outputs, A of what is cut along inputs: the other half is whole on every rank."""
    model, layout = graph("llama-3.1-8b"), Layout(tp=tp)
    (stage,) = stages(model, BF16, tp, 1, 1)
    hidden, keys, ffn, rank = 4096, 1024, 14336, 16
    whole = rank * (4 * hidden + 3 * hidden)  # A of q, k, v, gate and up, B of o and down
    cut = rank * (hidden + 2 * keys + hidden + 3 * ffn) // tp
    assert trained_on_device(model, SET, layout, stage) == (32 * (whole + cut), 0)


def test_zero_3_shares_frozen_weights_too() -> None:
    """Among eight ranks, to a byte of rounding up."""
    for base in (None, NF4):
        one, shared = (
            state_of("llama-3.1-8b", replace(SET, zero_stage=3, base=base), Layout(dp=dp)).weights for dp in (1, 8)
        )
        assert 0 <= shared - one // 8 <= 2


def test_data_parallel_ranks_send_adapters_alone() -> None:
    """ZeRO 1: their gradients in 4 bytes and their weights in 2; ZeRO 3 gathers the packed base as well."""
    model, layout = graph("llama-3.1-8b"), Layout(dp=8)
    (stage,) = stages(model, NF4, 1, 1, 1)
    load = StepTokens(1024, 1)

    def payload(train: TrainSetting) -> dict[str, int]:
        rows = stage_traffic(model, train, layout, load, stage, 8).rows
        return {row.collective: sum(r.payload_bytes for r in rows if r.collective == row.collective) for row in rows}

    adapters = 41_943_040
    assert payload(replace(SET, base=NF4)) == {"reduce-scatter": 4 * adapters, "all-gather": 2 * adapters}
    blocks = stage.weights.total_bytes - 2 * (2 * 128_256 * 4096 + 4096)
    ends = 2 * (2 * 128_256 * 4096 + 4096)
    gathered = 2 * (blocks + 2 * adapters) + ends
    assert payload(replace(SET, base=NF4, zero_stage=3))["all-gather"] == gathered


def test_tensor_parallel_ranks_add_up_gradients_of_whole_halves() -> None:
    model, layout = graph("llama-3.1-8b"), Layout(tp=8)
    (stage,) = stages(model, BF16, 8, 1, 1)
    rows = stage_traffic(model, SET, layout, StepTokens(1024, 1), stage, 8).rows
    (row,) = (row for row in rows if row.what == "gradients of replicated tensors")
    assert row.payload_bytes == 4 * 32 * 16 * 7 * 4096


def test_fewer_targets_and_ranks_keep_less() -> None:
    for name, kind in product(("scout", "deepseek-v2-lite", "nemotron-3-nano-30b-a3b"), CHECKPOINTING):
        train = replace(SET, checkpointing=kind)
        full = state_of(name, replace(train, lora=None), Layout())
        every = state_of(name, replace(train, lora=Lora(16, ("linear", "experts"))), Layout())
        few = state_of(name, replace(train, lora=Lora(8, ("linear",))), Layout())
        assert few.weights < every.weights
        assert few.kept <= every.kept
        assert few.gradients < every.gradients < full.gradients


def test_published_peaks_of_adapters_are_met() -> None:
    """bf16 within 1 %; packed bases within 3 %, of which 1 % is the same for all four rows."""
    rows = [row for row in read_rows(PUBLISHED) if row.source.startswith("Lightning-AI/litgpt")]
    assert len(rows) == 7
    for row in rows:
        predicted = predict_training_memory(row)
        assert isinstance(predicted, float)
        assert predicted == pytest.approx(row.published, rel=0.01 if row.precision_weights == "bf16" else 0.03), row.id


def test_a_plan_says_what_is_trained_and_what_times_leave_out() -> None:
    made = plan("llama-3.1-8b", gpus="8xH100", mode="train", lora_rank=16, quantization="nf4")
    asked = made.deployment
    assert (asked.lora_rank, asked.lora_targets, asked.lora_params) == (16, ("linear",), 41_943_040)
    assert asked.quantization == "bnb-nf4"
    assert made.latency is not None
    assert sum("adapters' own" in caution or "packed" in caution for caution in made.latency.cautions) == 2
    whole = plan("llama-3.1-8b", gpus="8xH100", mode="train", checkpointing="none", micro_batch=1)
    assert whole.latency is not None
    assert (made.latency.step_time_seconds or 0.0) < (whole.latency.step_time_seconds or 0.0)


def test_a_packed_base_is_suggested_where_a_frozen_model_does_not_fit() -> None:
    """A 70B model on 80 GB: arXiv:2305.14314 trains 65B on 48 GB."""
    made = plan("llama-3.1-70b", gpus="1xH100", mode="train", lora_rank=16, batch=1)
    assert not made.fits
    suggested = {suggestion.change: suggestion for suggestion in made.suggestions}
    packed = suggested["bnb-nf4 weights"]
    assert "--quantization bnb-nf4" in packed.command
    assert packed.total_bytes < 80e9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 8, "lora_targets": "qkv_proj"}, "no linear layer.*called 'qkv_proj'.*q_proj"),
        ({"lora_rank": 8, "lora_targets": ""}, "no linear layer"),
        ({"lora_rank": 8, "lora_targets": "experts"}, "called 'experts'.*linear, attention, ffn"),
        ({"lora_rank": 0}, "expected 1 to"),
        ({"lora_targets": "q_proj"}, "lora_targets: needs --lora-rank"),
        ({"lora_rank": 8, "precision": "fp8"}, "precision: adapters are trained in bf16"),
        ({"lora_rank": 8, "quantization": "fp8"}, "quantization: multiplies in fp8"),
        ({"quantization": "nf4"}, "quantization: training keeps bf16 weights.*--lora-rank"),
        ({"lora_rank": 8, "mode": "serve"}, "lora_rank: needs --mode train"),
    ],
)
def test_what_cannot_be_planned_is_one_error_with_its_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan("llama-3.1-8b", **{"mode": "train", **options})


def test_routers_embeddings_and_vision_have_no_adapters() -> None:
    names = {
        tensor.name for node in graph("scout").nodes for tensor in adapters_of(node, Lora(1, ("linear", "experts")))
    }
    assert not any("router" in name or "embedding" in name for name in names)
    assert "experts.up_proj.lora_a" in names
    assert all(node.scope == "text" for node in graph("scout").nodes if adapters_of(node, LORA))
