"""The table of all models: one row a model and precision, refusals reported in their rows instead of failing."""

import pytest

from l4spec.errors import UserError
from l4spec.report.model_table import model_table, model_table_page
from l4spec.report.page import to_text
from planners.request import PlanRequest
from tests.report.conftest import Compile


def test_a_context_that_one_model_cannot_take_is_reported_in_its_rows_alone(compiled: Compile) -> None:
    graphs = [compiled(name) for name in ("scout", "maverick")]
    table = model_table(graphs, PlanRequest(gpus="8xH100", context=2_000_000), ["fp8"])
    scout, maverick = table.rows
    assert scout.fits is not None
    assert maverick.fits is None
    assert maverick.refusal is not None
    assert "1,048,576" in maverick.refusal
    assert max(len(line) for line in to_text(model_table_page(table)).splitlines()) <= 160


def test_a_context_that_none_can_take_is_an_error(compiled: Compile) -> None:
    with pytest.raises(UserError, match="context"):
        model_table([compiled("scout")], PlanRequest(gpus="8xH100", context=99_000_000), ["fp8"])


def test_only_the_estimated_model_is_marked(compiled: Compile) -> None:
    graphs = [compiled(name) for name in ("behemoth", "llama-guard-4-12b")]
    text = to_text(model_table_page(model_table(graphs, PlanRequest(gpus="8xH100"), ["bf16"])))
    assert "~1.95T" in text
    assert "~12.00B" not in text
    assert "without effect on any number" in text
