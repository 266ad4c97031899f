"""One model of options: what is typed, passed, suggested and echoed is the same, in every command that plans."""

import json
import shlex
from typing import Any, get_args

import pytest
import typer

from l4spec.cli import app
from l4spec.cli.verify import REFUSED
from l4spec.errors import UserError
from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.options import flag_of, option_of
from l4spec.report.model_table import ACCEPTED
from planners.device.training_state import OPTIMIZER_BYTES, PRECISIONS
from planners.plan import plan
from planners.request import HOST_OPTIONS, PlanRequest
from tests.cli.conftest import Run
from tests.planners.models import graph

EXAMPLES: dict[str, str] = {
    "gpus": "8xH200",
    "quantization": "fp8",
    "kv_dtype": "fp8",
    "context": "256",
    "prompt_tokens": "200",
    "output_tokens": "100",
    "max_context": "0.3k",
    "batch": "1k",
    "concurrency": "32",
    "rate": "0.5",
    "tp": "2",
    "ep": "2",
    "pp": "2",
    "dp": "2",
    "cp": "2",
    "engine": "vllm",
    "objective": "max-context",
    "mode": "train",
    "num_tiles": "3",
    "images": "1",
    "video": "20s",
    "fps": "0.5",
    "frames": "4",
    "frame_size": "1280x720",
    "memory_fraction": "0.8",
    "prefill_chunk": "4k",
    "max_num_seqs": "64",
    "optimizer": "sgd",
    "zero_stage": "3",
    "checkpointing": "none",
    "sequence_parallel": "on",
    "gradient_bytes": "2",
    "trainer": "megatron",
    "virtual_stages": "2",
    "lora_rank": "8",
    "lora_targets": "q_proj,experts",
    "micro_batch": "2",
    "precision": "fp8",
    "fp8_matmuls": "fp8-experts",
    "train_tokens": "1T",
    "usd_per_gpu_hour": "2.5",
    "routing": "load.json",
    "factors": "fitted.yaml",
    "host_memory": "64GB",
    "host_bandwidth": "200GB/s",
    "on_host": "layers",
    "draft_acceptance": "0.8,0.6",
}
COMPANIONS = {"concurrency": "--output-tokens 64", "rate": "--output-tokens 64"}
COMPANIONS |= {"video": "--frames 2", "fps": "--video 3s", "frames": "--video 3s", "frame_size": "--video 3s --fps 1"}
COMPANIONS |= {"fp8_matmuls": "--precision fp8"}
COMPANIONS |= {"lora_targets": "--lora-rank 8"}
COMPANIONS |= {"host_bandwidth": "--host-memory 32GB", "on_host": "--host-memory 32GB"}
"""What an option cannot stand without."""


def typed(name: str) -> list[str]:
    """An option with a value that is not its default, and what it needs beside it."""
    training = ["--mode", "train"] if option_of(PlanRequest, name).mode == "train" else []
    return [flag_of(PlanRequest, name), EXAMPLES[name], *COMPANIONS.get(name, "").split(), *training]


def test_every_option_has_an_example_here() -> None:
    assert EXAMPLES.keys() == PlanRequest.model_fields.keys()


def test_choices_of_training_are_those_that_the_planner_knows() -> None:
    choices = {name: set(get_args(PlanRequest.model_fields[name].annotation)) for name in PlanRequest.model_fields}
    assert choices["optimizer"] == OPTIMIZER_BYTES.keys()
    kinds = next(kind for kind in choices["checkpointing"] if kind is not type(None))
    assert set(get_args(kinds)) == set(CHECKPOINTING)
    assert choices["precision"] == set(PRECISIONS)


@pytest.mark.parametrize("command", ["plan", "compare", "verify"])
def test_every_command_that_plans_has_every_planning_option(command: str) -> None:
    group = typer.main.get_group(app)
    result = group.get_command(group.context_class(group), command)
    assert result is not None
    flags = {flag for parameter in result.params for flag in parameter.opts}
    assert {flag for name in PlanRequest.model_fields for flag in option_of(PlanRequest, name).names(name)} <= flags


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"routing", "factors", "draft_acceptance"}))
@pytest.mark.parametrize("command", ["plan", "compare"])
def test_an_option_reaches_the_plan_by_every_command(run: Run, command: str, name: str) -> None:
    gpus = [] if name == "gpus" else ["--gpus", "1xH100" if name in HOST_OPTIONS else "8xH100"]
    result = run(command, "tiny/maverick", *gpus, *typed(name), "--format", "json")
    assert result.exit_code in (0, 3), result.stderr
    document = json.loads(result.stdout)
    echo = (document if command == "plan" else document["models"][0]["plan"])["request"]
    assert echo[name] == option_of(PlanRequest, name).parse(EXAMPLES[name])


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_verify_fills_in_what_claims_leave_open_and_refuses_the_rest_by_name(run: Run, name: str) -> None:
    result = run("verify", "tiny/scout", flag_of(PlanRequest, name), EXAMPLES[name], "--format", "json")
    if name in REFUSED:
        assert result.exit_code == 2
        assert f"error: {flag_of(PlanRequest, name)}: {REFUSED[name]}" in result.stderr
    else:
        assert result.exit_code in (0, 1), result.stderr


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - ACCEPTED - {"gpus"}))
def test_the_table_of_all_models_refuses_what_is_about_one_by_name(run: Run, name: str) -> None:
    result = run("plan", *typed(name))
    assert result.exit_code == 2
    assert f"{flag_of(PlanRequest, name)} needs a SPEC" in result.stderr


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_training_takes_its_own_options_and_refuses_those_of_serving_by_name(name: str) -> None:
    option, value = option_of(PlanRequest, name), option_of(PlanRequest, name).parse(EXAMPLES[name])
    beside: dict[str, dict[str, Any]] = {
        "fp8_matmuls": {"precision": "fp8"},
        "virtual_stages": {"pp": 2, "batch": 2},
        "lora_targets": {"lora_rank": 8},
    }
    request = PlanRequest(**{"mode": "train", name: value, **beside.get(name, {})})
    if option.mode == "serve":
        with pytest.raises(UserError, match=name):
            plan(graph("tiny/maverick"), request)
    else:
        assert plan(graph("tiny/maverick"), request).deployment.mode == "train"


NOT_A_NUMBER = "1z"
NUMBERS = [name for name in EXAMPLES if option_of(PlanRequest, name).parse is not str]


@pytest.mark.parametrize("name", NUMBERS)
def test_pydantics_own_words_reach_nobody(run: Run, name: str) -> None:
    result = run("plan", "tiny/scout", flag_of(PlanRequest, name), NOT_A_NUMBER)
    assert result.exit_code == 2
    assert f"error: {flag_of(PlanRequest, name)}: expected" in result.stderr
    assert "Input should be" not in result.stderr
    with pytest.raises(UserError, match=f"{name}: expected"):
        plan(graph("tiny/scout"), **{name: NOT_A_NUMBER})


@pytest.mark.parametrize("option", ["--layers", "--seed", "--dp", "--batch"])
def test_other_commands_say_in_our_words_what_they_expect(run: Run, option: str) -> None:
    result = run("measure", "tiny/scout", option, NOT_A_NUMBER)
    assert result.exit_code == 2
    assert "expected a whole number" in result.stderr
    assert "Input should be" not in result.stderr


def test_both_ways_of_saying_a_length_are_refused_together(run: Run) -> None:
    for other in ("--prompt-tokens", "--max-context"):
        result = run("plan", "scout", "--context", "8k", other, "4k")
        assert result.exit_code == 2
        assert "error: --context:" in result.stderr
        assert other in result.stderr


def test_prompt_and_output_make_the_context() -> None:
    apart = plan(graph("scout"), gpus="8xH100", engine="vllm", prompt_tokens=3_000, output_tokens=1_000)
    together = plan(graph("scout"), gpus="8xH100", engine="vllm", context=4_000, output_tokens=1_000)
    assert apart.deployment.context == 4_000
    assert apart.latency == together.latency


def test_clients_are_the_batch_of_a_closed_loop() -> None:
    clients = plan(graph("scout"), gpus="8xH100", engine="vllm", output_tokens=256, concurrency=64)
    batch = plan(graph("scout"), gpus="8xH100", engine="vllm", output_tokens=256, batch=64)
    assert clients.latency == batch.latency
    assert clients.memory_per_device == batch.memory_per_device


def test_requests_at_a_rate_wait_longer_the_faster_they_come() -> None:
    def waited(rate: float) -> float:
        asked: dict[str, Any] = {"gpus": "8xH100", "engine": "vllm", "prompt_tokens": 1024, "output_tokens": 256}
        latency = plan(graph("scout"), batch=256, rate=rate, **asked).latency
        assert latency is not None
        return latency.time_per_output_token_seconds or 0.0

    assert 0 < waited(0.01) < waited(5) < waited(20)


def test_the_engines_limit_needs_room_for_one_sequence_of_that_length() -> None:
    asked: dict[str, Any] = {"gpus": "4xH100", "tp": 4, "engine": "full", "prompt_tokens": 1_000}
    short = plan(graph("scout"), **asked)
    assert short.fits
    limit = short.max_context or 0
    assert plan(graph("scout"), max_context=limit, **asked).fits
    beyond = plan(graph("scout"), max_context=limit + 1, **asked)
    assert beyond.fits is False
    (lower,) = [s for s in beyond.suggestions if "sequences of at most" in s.change]
    assert f"--max-context {limit}" in lower.command


TOO_LARGE: tuple[dict[str, Any], ...] = (
    {"gpus": "1xH100"},
    {"gpus": "2xH100", "batch": 64, "engine": "vllm", "prompt_tokens": 4000, "output_tokens": 96},
    {"gpus": "4xH100", "tp": 4, "engine": "full", "context": 700_000},
    {"gpus": "8xH100", "engine": "full", "concurrency": 4000, "output_tokens": 64},
    {"gpus": "1xH100", "engine": "full", "context": 200_000, "images": 2, "memory_fraction": 0.9},
    {"gpus": "8xH100", "mode": "train", "zero_stage": 0, "checkpointing": "none", "gradient_bytes": 2, "batch": 8},
    {"gpus": "4xH100", "tp": 4, "engine": "full", "prompt_tokens": 1000, "max_context": 2_000_000},
)


@pytest.mark.parametrize("asked", TOO_LARGE, ids=lambda asked: asked["gpus"] + "-" + list(asked)[-1])
def test_every_suggestions_command_parses_and_plans_what_it_promises(run: Run, asked: dict[str, Any]) -> None:
    model = "llama-3.1-70b" if asked.get("mode") == "train" else "scout"
    planned = plan(graph(model), **asked)
    assert planned.fits is False
    assert planned.suggestions
    for suggestion in planned.suggestions:
        result = run("plan", model, *shlex.split(suggestion.command), "--format", "json")
        assert result.exit_code == 0, (suggestion, result.stderr)
        answer = json.loads(result.stdout)
        assert answer["fits"] is True
        assert min(row["total_bytes"] for row in answer["layouts"] if row["fits"]) == suggestion.total_bytes


@pytest.mark.parametrize("asked", TOO_LARGE, ids=lambda asked: asked["gpus"] + "-" + list(asked)[-1])
def test_the_echo_of_a_plan_and_what_is_typed_make_the_same_request_again(asked: dict[str, Any]) -> None:
    request = PlanRequest(**asked)
    assert PlanRequest(**plan(graph("scout"), request).request if "mode" not in asked else request.echo()) == request
    words = shlex.split(request.command_line())
    names = {flag_of(PlanRequest, name): name for name in PlanRequest.model_fields}
    texts = {names[flag]: text for flag, text in zip(words[::2], words[1::2], strict=True)}
    assert PlanRequest.from_text(texts) == request


def test_an_unknown_option_in_python_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'prompt_tokens'"):
        plan(graph("tiny/scout"), prompt_token=3)
