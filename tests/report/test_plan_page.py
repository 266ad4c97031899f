"""The answer of `plan`: the verdict stands first, and the numbers are those of the plan."""

from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.report.page import Bars, Table, to_text
from l4spec.report.plan_detail import MOST_LISTED, detail_page
from l4spec.report.plan_page import plan_page, verdict
from l4spec.units import gib
from planners.plan import plan, plan_for_page
from planners.request import PlanRequest
from tests.report.conftest import Compile


def test_the_first_line_is_the_verdict(compiled: Compile) -> None:
    for gpus, words in (("8xH100", "fits on 8xH100"), ("2xH100", "does not fit on 2xH100")):
        text = to_text(plan_page(plan(compiled("scout"), gpus=gpus)))
        assert words in text.splitlines()[0]


TOO_SMALL: tuple[dict[str, Any], ...] = (
    {"gpus": "2xH100"},
    {"gpus": "2xH100", "engine": "vllm", "output_tokens": 100, "concurrency": 8},
    {"gpus": "1xH100", "host_memory": "16GB"},
    {"gpus": "2xH100", "mode": "train", "train_tokens": 10**9, "usd_per_gpu_hour": 2.0},
)


@pytest.mark.parametrize("options", TOO_SMALL, ids=lambda options: " ".join(map(str, options.values())))
def test_the_page_of_what_does_not_fit_is_the_same_without_times(compiled: Compile, options: dict[str, Any]) -> None:
    graph = compiled("scout")
    whole, timeless = plan(graph, **options), plan_for_page(graph, PlanRequest(**options))
    assert whole.fits is False
    assert whole.latency is not None
    assert timeless.latency is None
    assert plan_page(timeless) == plan_page(whole)


@pytest.mark.parametrize("option", ["factors", "routing"])
def test_a_missing_file_is_refused_whether_or_not_times_are_shown(compiled: Compile, option: str) -> None:
    request = PlanRequest.from_text({"gpus": "2xH100", option: "no-such-file.yaml"})
    with pytest.raises(UserError, match="no-such-file"):
        plan_for_page(compiled("scout"), request)


def test_scout_on_eight_h100_shows_the_published_numbers(compiled: Compile) -> None:
    text = to_text(plan_page(plan(compiled("scout"), gpus="8xH100")))
    for fact in (
        "108.64B",
        "17.17B",
        "202.36 GiB in bf16",
        "79.19 GiB",
        "ideal: local layers",
        "8,192 tokens (the default",
    ):
        assert fact in text
    assert len(text.splitlines()) <= 24, "the answer has to fit one screen"


def test_the_bars_and_what_is_free_sum_to_the_device(compiled: Compile) -> None:
    planned = plan(compiled("maverick"), gpus="8xH200", quantization="fp8")
    (bars,) = [block for section in plan_page(planned) for block in section.blocks if isinstance(block, Bars)]
    assert sum(bar.part for bar in bars.bars) == bars.whole == planned.memory_per_device.capacity_bytes


@pytest.mark.parametrize("engine", ["ideal", "vllm", "vllm-hybrid", "sglang-hybrid", "tensorrt-llm", "llama.cpp"])
def test_a_bar_stands_for_every_byte_that_an_engine_takes(compiled: Compile, engine: str) -> None:
    planned = plan(compiled("scout"), gpus="4xH200", engine=engine, tp=4)
    (bars,) = [block for section in plan_page(planned) for block in section.blocks if isinstance(block, Bars)]
    assert sum(bar.part for bar in bars.bars if not bar.hollow) == planned.memory_per_device.total_bytes


def test_training_shows_gradients_and_optimizer(compiled: Compile) -> None:
    planned = plan(compiled("scout"), gpus="64xH100", mode="train")
    (bars,) = [block for section in plan_page(planned) for block in section.blocks if isinstance(block, Bars)]
    assert {"weights", "gradients", "optimizer"} <= {bar.label for bar in bars.bars}
    assert sum(bar.part for bar in bars.bars if not bar.hollow) == planned.memory_per_device.total_bytes


def test_calibrated_terms_are_distinguished_from_computed_ones(compiled: Compile) -> None:
    text = to_text(plan_page(plan(compiled("scout"), gpus="4xH100", engine="vllm-hybrid")))
    assert "non torch *" in text
    assert "weights  " in text
    assert "* calibrated" in text
    assert "* calibrated" not in to_text(plan_page(plan(compiled("scout"))))


def test_more_reasons_follow_the_verdict(compiled: Compile) -> None:
    assert "the weights alone exceed the device" in to_text(plan_page(plan(compiled("scout"), gpus="1xH100")))


def test_a_verdict_without_gpus_does_not_pretend_to_know(compiled: Compile) -> None:
    planned = plan(compiled("scout"))
    assert "give --gpus" in verdict(planned)
    assert "longest context" not in to_text(plan_page(planned))


def test_a_context_that_the_model_limits_says_so(compiled: Compile) -> None:
    planned = plan(compiled("scout"), gpus="8xH200")
    assert planned.max_context == 10_485_760
    assert "the model's own limit" in to_text(plan_page(planned, max_seq_len=10_485_760))
    assert "the model's own limit" not in to_text(plan_page(planned, max_seq_len=20_000_000))


def test_what_would_make_it_fit_is_listed(compiled: Compile) -> None:
    planned = plan(compiled("maverick"), gpus="8xH100")
    text = to_text(plan_page(planned))
    assert planned.suggestions
    assert all(item.change in text for item in planned.suggestions)


def test_estimates_are_marked_and_published_models_are_not(compiled: Compile) -> None:
    behemoth, scout = (to_text(plan_page(plan(compiled(name), gpus="8xH100"))) for name in ("behemoth", "scout"))
    assert "~1.95T" in behemoth
    assert "because they are unpublished" in behemoth
    assert "~" not in scout


def test_detail_shows_every_part_layout_term_and_refusal(compiled: Compile) -> None:
    planned = plan(compiled("scout"), gpus="16xH100")
    text = to_text(detail_page(planned))
    assert all(part.replace("_", " ") in text for part in planned.params.by_part)
    assert all(str(row.layout) in text for row in planned.layouts)
    assert all(str(row.layout) in text and row.reason in text for row in planned.illegal_layouts)
    assert all(gib(term.bytes) in text and term.origin in text for term in planned.memory_per_device.terms)
    assert "(chosen)" in text
    assert planned.illegal_layouts


def test_of_thousands_of_layouts_the_chosen_and_the_smallest_replicas_are_listed(compiled: Compile) -> None:
    result = plan(compiled("tiny/scout"), gpus="720720xH100")
    (section,) = (part for part in detail_page(result) if part.title.startswith("Legal layouts"))
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert len(result.layouts) < MOST_LISTED
    assert len(table.rows) == len(result.layouts)
    many = plan(compiled("deepseek-v3"), gpus="720720xH100")
    (section,) = (part for part in detail_page(many) if part.title.startswith("Legal layouts"))
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert section.title == f"Legal layouts: 500 of {len(many.layouts):,}, the chosen one and the smallest replicas"
    assert len(table.rows) == MOST_LISTED
    assert any("(chosen)" in row[0] for row in table.rows)
