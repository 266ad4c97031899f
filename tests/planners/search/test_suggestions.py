"""What would make it fit: each suggestion alone suffices, is no larger than needed, and says how to type it."""

import pickle

import pytest

from planners.deferred import Deferred
from planners.deployment import Deployment
from planners.device.memory import place
from planners.plan import plan
from planners.plan_types import Plan, Suggestion
from planners.request import PlanRequest
from planners.search import suggestions
from planners.search.layouts import layouts_to_try, ruled_out
from tests.planners.models import graph


def changes(planned: Plan) -> dict[str, str]:
    assert planned.fits is False
    return {suggestion.change: suggestion.command for suggestion in planned.suggestions}


def test_a_plan_that_fits_gets_no_advice() -> None:
    assert plan(graph("scout"), gpus="8xH100").suggestions == ()
    assert plan(graph("scout")).suggestions == ()


def test_scout_in_bf16_on_one_h100_fits_in_four_bits_or_on_three_gpus() -> None:
    assert changes(plan(graph("scout"), gpus="1xH100")) == {
        "int4-mixed weights": "--gpus 1xH100 --quantization int4-mixed --context 8192",
        "w4a16 weights": "--gpus 1xH100 --quantization w4a16 --context 8192",
        "256GB of host memory beside the GPU": "--gpus 1xH100 --context 8192 --host-memory 256GB",
        "3 GPUs instead of 1": "--gpus 3xH100 --context 8192",
    }


def test_a_context_too_long_gets_a_smaller_cache_or_the_longest_that_fits() -> None:
    ninety = plan(graph("scout"), gpus="4xH100", tp=4, engine="full", context=700_000)
    result = changes(ninety)
    assert result["KV cache in fp8"] == "--gpus 4xH100 --kv-dtype fp8 --context 700000 --tp 4 --engine full"
    assert result[f"context of {ninety.max_context:,} tokens"].split()[3] == str(ninety.max_context)
    assert result["8 GPUs instead of 4"] == "--gpus 8xH100 --context 700000 --tp 4 --engine full"


def test_a_batch_too_large_gets_the_largest_that_fits() -> None:
    crowded = plan(graph("scout"), gpus="8xH100", tp=8, batch=2000)
    assert f"batch of {crowded.max_batch:,}" in changes(crowded)


def test_where_one_change_is_not_enough_weights_and_cache_shrink_together() -> None:
    """60.4 GB of weights and 39.3 GB of cache exceed 85.0 GB, 217.3 and 19.7 too, 60.4 and 19.7 do not."""
    result = changes(plan(graph("scout"), gpus="1xH100", engine="full", context=200_000))
    beside = "256GB of host memory beside the GPU"
    assert list(result) == ["KV cache in fp8, w4a16 weights", beside, "4 GPUs instead of 1"]
    assert "--quantization w4a16 --kv-dtype fp8" in result["KV cache in fp8, w4a16 weights"]


def test_where_no_format_is_enough_the_smallest_is_combined_with_less_work_and_fewer_more_gpus() -> None:
    result = changes(plan(graph("scout"), gpus="1xH100", context=1_000_000))
    assert "4 GPUs instead of 1" in result
    assert "--gpus 2xH100 --quantization w4a16" in result["w4a16 weights, 2 GPUs instead of 1"]
    (shorter,) = [what for what in result if what.startswith("w4a16 weights, context of")]
    longest = int(shorter.split("context of ")[1].split(" ")[0].replace(",", ""))
    assert plan(graph("scout"), gpus="1xH100", quantization="w4a16", context=longest).fits
    assert not plan(graph("scout"), gpus="1xH100", quantization="w4a16", context=longest + 1).fits


def test_fixed_degrees_are_given_up_when_more_gpus_need_it() -> None:
    result = changes(plan(graph("scout"), gpus="1xH100", tp=1, ep=1, pp=1, dp=1))
    assert result["3 GPUs instead of 1"] == "--gpus 3xH100 --context 8192"


@pytest.mark.parametrize("spelling", ["8xH100", "8 x h100_sxm", "H100*8", "1x8xH100-80GB"])
def test_the_hardware_keeps_the_name_that_the_user_gave_it(spelling: str) -> None:
    planned = plan(graph("maverick"), gpus=spelling)
    (command,) = [s.command for s in planned.suggestions if "GPUs" in s.change]
    assert plan(graph("maverick"), gpus=command.split("--gpus ")[1].split(" --")[0].strip("'")).fits


def test_suggestions_are_worked_out_when_they_are_read() -> None:
    asked: list[int] = []

    def suggest() -> tuple[Suggestion, ...]:
        asked.append(1)
        return (Suggestion(change="more", command="--gpus 16xH100", total_bytes=1, max_context=2),)

    plan_of = plan(graph("scout"), gpus="2xH100").model_copy(update={"suggestions": Deferred(suggest)})
    assert not asked
    assert [each.change for each in plan_of.suggestions] == ["more"]
    assert len(plan_of.suggestions[:1]) == len(asked) == 1


def test_a_plan_is_the_same_after_a_document_and_a_pickle() -> None:
    planned = plan(graph("scout"), gpus="2xH100")
    assert planned.suggestions
    assert Plan.model_validate_json(planned.model_dump_json()) == planned
    assert pickle.loads(pickle.dumps(planned)) == planned
    assert hash(planned.suggestions) == hash(Plan.model_validate(planned.model_dump()).suggestions)


@pytest.mark.parametrize("engine", ["full", "vllm@0.19", "sglang-hybrid"])
@pytest.mark.parametrize("quantization", ["bf16", "fp8"])
@pytest.mark.parametrize("name", ["scout", "maverick", "compare/deepseek-v3", "compare/gpt-oss-20b"])
def test_no_layout_is_passed_over_that_would_fit(name: str, quantization: str, engine: str) -> None:
    """The bound on weights by which layouts are not placed is one: with a context of one token nothing else counts."""
    fitting = 0
    for gpus in ("6xH100", "8xL40S", "16xA100-80GB"):
        request = PlanRequest(gpus=gpus, quantization=quantization, engine=engine, context=1)
        setting = Deployment.resolve(graph(name), request).setting
        for layout in layouts_to_try(setting.graph, int(gpus.split("x")[0]), 1):
            if ruled_out(setting, layout) is not None:
                continue
            placement = place(setting, layout)
            least = suggestions._least_weights(setting)(layout)
            assert least <= max(stage.weights.total_bytes for stage, _ in placement.stages)
            if placement.fits(1, 1):
                fitting += 1
                assert least <= suggestions._most_weights(setting, layout.tp)
    assert fitting > 0 or name == "compare/deepseek-v3"
