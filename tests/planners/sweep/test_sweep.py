"""A sweep is every combination, each row what `plan` says of that variant alone."""

from typing import Any

import pytest

import l4spec
from l4spec.errors import UserError
from l4spec.options import option_of
from planners import plan
from planners.request import PlanRequest
from planners.sweep.sweep import sweep
from planners.sweep.sweep_request import REFUSED, SweepRequest
from planners.sweep.variants import read_axes

EXPERTS, CHOSEN = "text.parts.moe.num_experts", "text.parts.moe.num_experts_per_token"
LINK = {"vision.projector.output_size": "text.hidden_size"}


def test_a_row_is_what_plan_says_of_that_variant() -> None:
    made = sweep("scout", {EXPERTS: [8, 16], CHOSEN: [1, 2]}, gpus="8xH100", batch=16, train_tokens="1T")
    assert [tuple(row.values.values()) for row in made.rows] == [(8, 1), (8, 2), (16, 1), (16, 2)]
    spec = l4spec.load("scout", [f"{EXPERTS}=8", f"{CHOSEN}=2"])
    serving, row = plan(spec, gpus="8xH100", batch=16), made.rows[1]
    assert serving.latency is not None
    assert (row.params, row.fits, row.layout) == (serving.params.total, serving.fits, str(serving.layout))
    assert row.time_per_output_token_seconds == serving.latency.time_per_output_token_seconds
    assert row.usd_per_million_output_tokens is not None
    training = plan(spec, gpus="8xH100", mode="train", train_tokens="1T")
    assert training.latency is not None
    assert (row.train_fits, row.train_batch) == (training.fits, training.deployment.batch)
    assert row.train_gpu_hours == (training.latency.gpu_hours if training.fits else None)


def test_more_experts_are_more_parameters_and_hardly_more_work() -> None:
    rows = sweep("scout", {EXPERTS: [8, 16, 32]}).rows
    params, active = [row.params or 0 for row in rows], [row.active_params or 0 for row in rows]
    assert params == sorted(set(params))
    assert active[2] < 1.001 * active[0]  # the router's rows alone


def test_a_combination_that_is_no_spec_is_a_row_with_its_problem() -> None:
    rows = sweep("scout", {EXPERTS: [8, 16], CHOSEN: [1, 12]}).rows
    assert [row.problem is None for row in rows] == [True, False, True, True]
    assert "must not exceed num_experts (8)" in str(rows[1].problem)
    assert rows[1].params is None


def test_a_field_that_has_to_follow_is_named_with_the_link_that_does_it() -> None:
    rows = sweep("scout", {"text.hidden_size": [5120, 6144]}).rows
    assert "--link vision.projector.output_size=text.hidden_size" in str(rows[1].problem)
    linked = sweep("scout", {"text.hidden_size": [5120, 6144]}, link=LINK).rows
    assert [row.problem for row in linked] == [None, None]
    with pytest.raises(UserError, match=r"nothing is written at text\.nothing"):
        sweep("scout", {"text.hidden_size": [5120, 6144]}, link={"vision.projector.output_size": "text.nothing"})


def test_wider_relatives_are_rows_and_grow() -> None:
    rows = sweep("scout", widen=[1, 1.25, 1.5]).rows
    assert [row.widen for row in rows] == [1, 1.25, 1.5]
    params = [row.params or 0 for row in rows]
    # experts are width x hidden: of 1.5 each, with a hidden size rounded to 64 heads of 128, 1.5 x 1.6
    assert 2.2 < params[2] / params[0] < 2.5


def test_several_jobs_give_the_same_rows() -> None:
    values = {EXPERTS: [2, 4]}
    assert sweep("tiny/scout", values, gpus="1xL4", jobs=2) == sweep("tiny/scout", values, gpus="1xL4")


def test_pandas_and_polars_take_the_records_as_they_are() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    records = sweep("tiny/scout", {EXPERTS: [2, 4], CHOSEN: [1, 3]}, gpus="1xL4").records()
    for frame in (pandas.DataFrame(records), polars.DataFrame(records)):
        assert frame.shape == (4, len(records[0]))
        assert list(frame[EXPERTS]) == [2, 2, 4, 4]
    assert pandas.DataFrame(records)["params"].notna().sum() == 3


def test_brackets_and_quotes_keep_their_commas() -> None:
    (axis,) = read_axes(["text.layers=[{a: 1, b: 2}, 3], \"x,y\",'z'"])
    assert axis.values == ("[{a: 1, b: 2}, 3]", '"x,y"', "'z'")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["text.hidden_size="], "expected values with commas"),
        (["text.hidden_size=1,,2"], "expected values with commas"),
        (["text hidden=1"], "expected the path of a field"),
        (["a=1", "a=2"], "a: is given twice"),
        (["foo=1,2"], "unknown field"),
        (
            [f"{EXPERTS}=" + ",".join(map(str, range(1, 102))), f"{CHOSEN}=" + ",".join(map(str, range(1, 102)))],
            "10,201",
        ),
    ],
)
def test_what_cannot_be_swept_is_one_error(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep("scout", values)


OF_TRAINING: dict[str, Any] = {
    "optimizer": "sgd",
    "zero_stage": 3,
    "checkpointing": "full",
    "sequence_parallel": "on",
    "gradient_bytes": 2,
    "trainer": "megatron",
    "virtual_stages": 2,
    "lora_rank": 8,
    "lora_targets": "q_proj",
    "micro_batch": 2,
    "precision": "fp8",
    "fp8_matmuls": "fp8-experts",
    "train_gpus": "16xH100",
    "train_context": 1024,
    "train_batch": 64,
}


def test_every_option_of_training_reaches_the_training_run_or_is_refused() -> None:
    """By the request that is planned; without tokens of a run every one of them is refused."""
    of_plan = {name for name in PlanRequest.model_fields if option_of(PlanRequest, name).mode == "train"}
    own = {name for name in SweepRequest.model_fields if name.startswith("train_")}
    assert of_plan | own == set(OF_TRAINING) | {"train_tokens"}
    for name, value in OF_TRAINING.items():
        if name in REFUSED:
            continue
        others: dict[str, Any] = {"train_tokens": "1T", "precision": "fp8"}
        without = {each: given for each, given in others.items() if each != name}
        assert SweepRequest(**{**others, name: value}).trained() != SweepRequest(**without).trained(), name
        with pytest.raises(UserError, match=f"{name}: is for a training run"):
            sweep("tiny/scout", gpus="8xH100", **{name: value})


def test_what_does_not_fit_has_no_times_and_costs_nothing_that_is_known() -> None:
    fits, too_large = sweep("scout", {EXPERTS: [16, 64]}, gpus="4xH100", train_tokens="1T").rows
    assert (fits.fits, too_large.fits, fits.train_fits) == (True, False, False)
    assert fits.usd_per_million_output_tokens is not None
    assert (too_large.ttft_seconds, too_large.usd_per_million_output_tokens, too_large.extrapolated) == (None,) * 3
    assert (fits.train_gpu_hours, fits.train_usd, fits.train_mfu) == (None,) * 3
