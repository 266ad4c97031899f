"""The plan's cache laws give what engines logged for hybrid and sparse models, and the page shows every row."""

import pytest

import l4spec
from planners.catalog import engine
from planners.counts.kv_cache import blocks_per_sequence, plan_cache
from tests.validation.hybrid_caches import PAGE, PLANNED, ROWS, Row, page, per_device, qwen_27b


@pytest.mark.parametrize("row", [row for row in ROWS if row["status"] == "exact"], ids=lambda row: row["id"])
def test_the_plan_gives_what_the_engine_logged(row: Row) -> None:
    assert PLANNED[row["id"]]() == float(row["value"])


def test_every_row_has_a_number_or_says_why_not() -> None:
    assert len(ROWS) == 13
    assert {row["id"] for row in ROWS if row["status"] == "exact"} == set(PLANNED)
    assert all(row["law"] for row in ROWS)


def test_a_state_takes_no_more_where_the_context_is_longer() -> None:
    rows, hybrid = per_device(qwen_27b(), "vllm-hybrid"), engine("vllm-hybrid")
    needs = [blocks_per_sequence(rows, hybrid, context) for context in (1, 784, 785, 7840)]
    assert needs == [4, 4, 5, 13]


def test_what_a_reason_says_of_deepseek_v4_is_what_the_plan_gives() -> None:
    graph = l4spec.compile(l4spec.load("deepseek-v4-flash"))
    shorter, longer = (
        plan_cache(graph, engine("ideal"), dtype="fp8", context=context, batch=1).bytes for context in (12_800, 25_600)
    )
    assert (longer - shorter) / 12_800 == 3440
    assert "3,440 numbers a token" in next(row["law"] for row in ROWS if row["id"] == "HYB-10")


def test_the_page_is_in_step() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.validation.hybrid_caches"
