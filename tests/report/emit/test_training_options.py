"""Every option of training is in torchtitan's launch, refused by it, or named in a note."""

from typing import Any

import pytest

from l4spec.deploy import LaunchRequest, emit
from l4spec.errors import UserError
from l4spec.options import option_of
from planners.plan import plan
from planners.request import PlanRequest
from tests.planners.models import graph

ASKED: dict[str, Any] = {
    "gpus": "64xH200",
    "mode": "train",
    "batch": 512,
    "context": 4096,
    "tp": 2,
    "ep": 4,
    "pp": 1,
    "zero_stage": 3,
    "checkpointing": "full",
    "micro_batch": 1,
}
CHANGED: dict[str, Any] = {
    "optimizer": "adamw-bf16",
    "zero_stage": 2,
    "checkpointing": "selective",
    "sequence_parallel": "on",
    "gradient_bytes": 2,
    "micro_batch": 2,
    "precision": "fp8",
    "fp8_matmuls": "fp8-experts",
    "train_tokens": "1T",
    "trainer": "torchtitan",
    "virtual_stages": 2,
    "lora_rank": 8,
    "lora_targets": "q_proj",
}
OTHERS: dict[str, dict[str, Any]] = {
    "fp8_matmuls": {"precision": "fp8"},
    "virtual_stages": {"pp": 2},
    "lora_targets": {"lora_rank": 8},
}
"""What an option cannot stand without."""


def launched(**options: Any) -> str:
    """The launch; of an option that torchtitan has not, the refusal."""
    made = plan("scout", **{**ASKED, **options})
    try:
        return emit("torchtitan", LaunchRequest(made, graph("scout")))
    except UserError as error:
        return str(error)


def test_every_option_of_training_changes_the_launch() -> None:
    assert {name for name in PlanRequest.model_fields if option_of(PlanRequest, name).mode == "train"} == set(CHANGED)
    for name, value in CHANGED.items():
        others = OTHERS.get(name, {})
        assert launched(**others, **{name: value}) != launched(**others), name


@pytest.mark.parametrize(("tokens", "steps"), [("1T", 476_837), ("10M", 5), ("1M", 1)])
def test_a_run_has_the_steps_of_its_tokens(tokens: str, steps: int) -> None:
    """Of 512 x 4,096 tokens each."""
    assert f"\nsteps = {steps}\n" in launched(train_tokens=tokens)
    assert "\nsteps = " not in launched()


def test_context_parallelism_is_torchtitan_s_and_its_ranks_share_weights_there_too() -> None:
    """FSDP shards over data_parallel_shard x context_parallel ranks: the first degree leaves cp out."""
    text = launched(ep=1, dp=16, cp=2)
    assert "\ncontext_parallel_degree = 2\n" in text
    assert "\ndata_parallel_shard_degree = 16\n" in text
    assert "no ZeRO stage 0 with cp 2" in launched(ep=1, dp=16, cp=2, zero_stage=0)
