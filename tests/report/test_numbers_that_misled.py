"""Numbers of a plan that once looked wrong: caps, sums, sources, spreads, and times without arithmetic."""

import pytest

from l4spec.report.compare import compare, compare_page
from l4spec.report.explain_times import time_sections
from l4spec.report.latency import time_range
from l4spec.report.page import Table, to_text
from planners import plan
from planners.latency_types import LatencyError
from planners.plan_types import Plan
from planners.search.layouts import MAX_BATCH
from tests.planners.models import graph

SERVED = {"gpus": "8xH100", "context": 9216, "output_tokens": 1024, "batch": 20, "usd_per_gpu_hour": 2.5}
TRAINED = {"gpus": "64xH100", "mode": "train", "batch": 64, "zero_stage": 3}


def test_the_cap_of_a_search_is_no_result() -> None:
    trained = plan("scout", gpus="2048xH100", mode="train", tp=8, ep=1, pp=8)
    assert trained.max_batch == MAX_BATCH
    assert "any number of sequences of 8,192 tokens, in micro-batches of 1" in trained.report()
    served = plan("scout", gpus="720720xH100", context=128)
    assert served.max_batch == MAX_BATCH
    assert f"{MAX_BATCH:,} and more sequences" in served.report()


def test_active_parameters_are_summed_as_the_headline_counts_them() -> None:
    rows = plan("scout", gpus="8xH100").report(verbose=True).splitlines()
    assert any(row.split() == ["sum", "of", "a", "text", "token", "17.17B"] for row in rows)
    assert any(row.startswith("  sum, with an image") and "18.04B" in row for row in rows)
    alone = plan("compare/llama-3-8b", gpus="1xH100").report(verbose=True)
    assert "sum of a text token" not in alone


def test_weights_are_not_said_to_come_from_another_model() -> None:
    assert "Llama 4" not in plan("compare/deepseek-v3", gpus="16xH200").report(verbose=True)


def test_a_spread_is_promised_only_where_there_is_one() -> None:
    without = plan("scout", gpus="8xH100")
    assert all(term.spread is None for term in without.memory_per_device.terms)
    assert "-v shows its source" in without.report()
    assert "-v shows its spread and source" in plan("scout", gpus="8xH100", engine="vllm-hybrid").report()


def arithmetic(made: Plan) -> dict[str, tuple[str, str]]:
    (section,) = time_sections(made)
    (table,) = section.blocks
    assert isinstance(table, Table)
    return {name: (how, value) for name, how, value in table.rows}


@pytest.mark.parametrize("options", [SERVED, {"gpus": "8xH100"}, {"gpus": "8xH100", "batch": 64}])
def test_times_are_the_sums_of_their_parts(options: dict[str, object]) -> None:
    latency = plan("scout", **options).latency
    assert latency is not None
    for parts, total in (
        (latency.ttft_parts, latency.ttft_seconds),
        (latency.time_per_output_token_parts, latency.time_per_output_token_seconds),
    ):
        assert sum(part.seconds for part in parts) == pytest.approx(total)
        assert all(part.seconds >= 0 for part in parts)


def test_explain_covers_times_and_money_of_serving() -> None:
    made = plan("scout", **SERVED)
    rows = arithmetic(made)
    assert rows.keys() >= {"TTFT", "TPOT", "tokens/s per user", "tokens/s per GPU", "$ per million output tokens"}
    of_rank = 20 // (made.layout.dp * made.layout.ep * made.layout.pp)
    assert f"({of_rank} - 1) / 1,024 of one a token" in rows["TPOT"][0]
    latency = made.latency
    assert latency is not None
    assert latency.tokens_per_second_per_gpu is not None
    price = 2.5e6 / (latency.tokens_per_second_per_gpu * 3600)
    assert rows["$ per million output tokens"][1] == f"${price:,.2f}"
    assert "Times and money" in made.explain()


def test_explain_covers_times_and_money_of_training() -> None:
    made = plan("scout", **TRAINED, train_tokens="15T", usd_per_gpu_hour=2)
    rows, latency = arithmetic(made), made.latency
    assert latency is not None
    assert rows.keys() >= {"step", "tokens/s", "FLOP/s per GPU", "MFU", "GPU-hours", "$ of the run"}
    assert latency.step_time_seconds is not None
    speed = 64 * 8192 / latency.step_time_seconds
    hours = 15e12 / speed * 64 / 3600
    assert rows["GPU-hours"][1] == f"{hours:,.0f}"
    assert rows["$ of the run"][1] == f"${2 * hours:,.0f}"


def test_without_a_time_there_is_nothing_to_explain() -> None:
    assert time_sections(plan("scout")) == ()
    assert "Times and money" not in to_text(time_sections(plan("scout")))


def test_nothing_stands_in_three_empty_lines() -> None:
    assert "\n\n\n" not in plan("scout", gpus="1xH100").report()


def test_a_comparison_of_training_has_no_rows_of_serving() -> None:
    options = {**TRAINED, "train_tokens": 10**12}
    models = [graph(name) for name in ("scout", "maverick")]
    page = to_text(compare_page(compare((model, plan(model, **options)) for model in models)))
    assert "KV cache" not in page
    assert "decode" not in page
    assert "largest batch" not in page
    for row in ("FLOPs of a training step", "ZeRO stage", "GPU-hours"):
        assert row in page


def test_a_batch_too_small_for_the_gpus_is_cautioned_about() -> None:
    small = plan("scout", gpus="2048xH100", mode="train", batch=7)
    ranks = small.layout.dp * small.layout.ep
    assert f"{ranks - 7:,} of {ranks:,} data-parallel ranks are idle" in " ".join(small.report().split())
    piped = plan("scout", gpus="2048xH100", mode="train", batch=64, tp=8, ep=8, pp=32)
    assert "32 pipeline stages are idle for 79 % of a step" in " ".join(piped.report().split())
    assert "idle" not in plan("scout", gpus="2048xH100", mode="train").report()


def test_an_alternative_is_about_as_fast_rather_than_1_0x_faster() -> None:
    shown = plan("scout", gpus="32xH100", tp=8, context="10M").report()
    assert "about as fast" in shown
    assert "1.0x" not in shown


def test_the_error_of_a_time_is_a_range_around_it() -> None:
    made = plan("scout", gpus="8xH100")
    assert made.latency is not None
    error = next(each for each in made.latency.errors if each.metric == "tpot")
    tpot = made.latency.time_per_output_token_seconds
    assert tpot is not None
    low, high = (1e3 * tpot / (1 + sign * error.p90) for sign in (1, -1))
    assert f"(p90 {low:.2f} ms to {high:.2f} ms, median error" in " ".join(made.report().split())


def test_an_error_beyond_the_estimate_itself_leaves_the_range_open() -> None:
    error = LatencyError(metric="ttft", median=0.2, p90=1.5, num_rows=30, num_sources=5)
    assert time_range(0.1, 1.0, error) == (0.4, None)
    assert time_range(0.5, 1.0, error) == (0.5, None)


def test_a_step_that_waits_for_links_says_so() -> None:
    slow = {"gpus": "512xH100", "mode": "train", "batch": 512, "context": 512, "zero_stage": 3, "tp": 1, "pp": 1}
    assert "the step waits for them" in " ".join(plan("mobilellm-r1-950m", **slow).report().split())
    assert "the step waits for them" not in plan("scout", gpus="2048xH100", mode="train").report()


@pytest.mark.parametrize("options", [{"batch": 4}, {"mode": "train", "train_tokens": "1T"}])
def test_a_comparison_times_and_prices_only_what_fits(options: dict[str, object]) -> None:
    small, large = (graph(name) for name in ("compare/llama-3.1-8b", "behemoth"))
    plans = [(one, plan(one, gpus="8xH100", **options)) for one in (small, large)]
    assert [made.fits for _, made in plans] == [True, False]
    table = compare_page(compare(plans))[0].blocks[0]
    assert isinstance(table, Table)
    rows = {label: cells for label, *cells in table.rows}
    labels = ("step", "MFU", "GPU-hours", "$ of the run") if "mode" in options else ("TTFT", "TPOT", "tokens/s per GPU")
    for label in labels:
        assert rows[label][0] != "-"
        assert rows[label][1] == "-"


def test_a_short_run_and_a_cheap_token_are_not_free() -> None:
    """5M tokens of a small model take 0.02 GPU-hours and six cents, and a million of its tokens are not $0.00."""
    short = plan("compare/qwen3-0.6b", gpus="8xH100", mode="train", train_tokens=5_000_000, usd_per_gpu_hour=2.5)
    cheap = plan("compare/qwen3-0.6b", gpus="1xH100", batch=256, output_tokens=20, context=100, usd_per_gpu_hour=0.01)
    for text in (short.report(verbose=True), short.explain(), cheap.report(verbose=True), cheap.explain()):
        words = text.replace(",", " ").split()
        assert "$0" not in words
        assert "$0.00" not in words
        assert "take 0 GPU-hours" not in text
