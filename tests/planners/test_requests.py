"""What cannot be planned is refused with every problem at once, never with a traceback."""

from typing import Any

import pytest

from l4spec.errors import UserError
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest
from tests.planners.models import graph


def planned(**arguments: Any) -> Plan:
    """A plan of a small model with whatever a user may pass."""
    return plan(graph("tiny/scout"), **arguments)


def problems(**arguments: Any) -> dict[str, str]:
    """Message of each problem by the argument that it is about."""
    with pytest.raises(UserError) as caught:
        planned(**arguments)
    return {problem.path: problem.message for problem in caught.value.problems}


NOT_WHOLE = [True, 1.0, 1.5, float("nan"), float("inf"), "eight", [8], None]


@pytest.mark.parametrize("name", ["batch", "prefill_chunk", "num_tiles", "tp", "ep", "pp", "dp", "context"])
@pytest.mark.parametrize("value", NOT_WHOLE)
def test_what_is_no_whole_number_is_refused_by_name(name: str, value: Any) -> None:
    if value is None and name in ("tp", "ep", "pp", "dp", "context"):
        assert planned(**{name: value}) == planned()
        return
    (message,) = problems(**{name: value}).values()
    assert message.startswith("expected ")
    assert message.endswith(f", found {value!r}")


@pytest.mark.parametrize(("text", "number"), [("8", 8), ("1k", 1000), ("128Ki", 131_072), ("1_000", 1000)])
def test_a_text_is_read_as_the_command_line_reads_it(text: Any, number: int) -> None:
    assert PlanRequest(batch=text) == PlanRequest(batch=number)
    assert PlanRequest(context=text).context == number


@pytest.mark.parametrize("name", ["batch", "prefill_chunk", "tp", "ep", "pp", "dp", "context"])
@pytest.mark.parametrize("value", [0, -1, -(2**70), 2**70])
def test_numbers_out_of_range_are_refused_with_the_range(name: str, value: int) -> None:
    result = problems(**{name: value})
    assert set(result) == {name}
    assert result[name].startswith("expected 1 to ")
    assert f"{value:,}" in result[name]


@pytest.mark.parametrize("name", ["gpus", "quantization", "kv_dtype", "engine", "objective", "mode"])
@pytest.mark.parametrize("value", ["", " ", "no such thing", "8", "\0", "x" * 10_000, "../../etc/passwd", "é"])
def test_nonsense_names_are_refused(name: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(**{name: value})
    assert len(str(caught.value)) < 25_000


@pytest.mark.parametrize("name", ["gpus", "quantization", "kv_dtype", "engine", "objective", "mode"])
@pytest.mark.parametrize("value", [8, 1.5, True, ["8xH100"]])
def test_what_is_no_text_is_refused_by_name(name: str, value: Any) -> None:
    assert set(problems(**{name: value})) == {name}


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.01, float("nan"), float("inf"), "much", True])
def test_a_memory_fraction_lies_above_zero_and_up_to_one(value: Any) -> None:
    assert set(problems(memory_fraction=value)) == {"memory_fraction"}


def test_all_problems_come_at_once() -> None:
    result = problems(batch=0, tp=-1, context=True, mode="sevre", memory_fraction=2, zero_stage=4)
    assert set(result) == {"batch", "tp", "context", "mode", "memory_fraction", "zero_stage"}


def test_a_misspelt_word_gets_the_nearest_one() -> None:
    misspelt: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mode": "sevre"}, "serve"),
        ({"objective": "max-contxt"}, "max-context"),
        ({"optimizer": "adam", "mode": "train"}, "adamw"),
        ({"kv_dtype": "fp-8"}, "fp8"),
    )
    for arguments, nearest in misspelt:
        with pytest.raises(UserError, match=f"'?{nearest}'?"):
            planned(**arguments)


@pytest.mark.parametrize(
    "option",
    [
        {"optimizer": "sdg"},
        {"checkpointing": "some"},
        {"zero_stage": True},
        {"micro_batch": 0},
        {"gradient_bytes": 3},
    ],
)
def test_training_settings_are_checked(option: dict[str, Any]) -> None:
    assert set(problems(mode="train", **option)) == set(option)


def test_training_takes_no_scheme_and_no_engine() -> None:
    assert set(problems(mode="train", quantization="fp8", engine="vllm")) == {"quantization", "engine"}


def test_tiles_need_a_model_with_vision() -> None:
    with pytest.raises(UserError, match="no vision"):
        plan(graph("mobilellm-r1-950m"), num_tiles=1)


def test_a_context_beyond_the_model_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"text\.max_seq_len"):
        plan(graph("maverick"), context=1_048_577)


def test_the_default_context_is_stated_and_never_the_models_longest() -> None:
    deployment = plan(graph("scout")).deployment
    assert (deployment.context, deployment.context_origin) == (8192, "default")
    short = plan(graph("scout", "text.max_seq_len=1000")).deployment
    assert (short.context, short.context_origin) == (1000, "default")
    assert plan(graph("scout"), context=8192).deployment.context_origin == "given"
