"""Rows of memory, caches and of what fits: published figures that the planner's terms give, and rows that are wrong."""

from pathlib import Path

import pytest

from l4spec.errors import UserError
from planners.evidence.replay import Prediction, predict
from planners.evidence.rows import Row, published_rows, read_rows

HEADER = (
    "id,model,hardware,n_gpus,precision_weights,precision_kv,tp,pp,ep,dp,batch_or_concurrency,isl,osl,metric,value,"
)
CLAIM = "FIT-1,Llama-4-Scout-17B-16E,H100-80GB,1,{format},bf16,1,1,1,1,,,,fits,{value},bool,Meta card,,test\n"


def rows_of(folder: Path, value: str, scheme: str = "int4") -> tuple[Row, ...]:
    path = folder / "rows.csv"
    path.write_text(f"{HEADER}unit,source,notes,split\n{CLAIM.format(value=value, format=scheme)}", encoding="utf-8")
    return read_rows(path)


@pytest.mark.parametrize(("value", "scheme", "error"), [("1", "int4", 0), ("0", "int4", 1), ("0", "bf16", 0)])
def test_a_claim_of_what_fits_is_right_or_wrong(tmp_path: Path, value: str, scheme: str, error: float) -> None:
    """Scout's experts in int4 fit one H100, as Meta says; 109B parameters in bf16 do not."""
    (row,) = rows_of(tmp_path, value, scheme)
    assert predict(row).error == error


@pytest.mark.parametrize("value", ["2", "-1", "yes", "0.5"])
def test_a_claim_is_0_or_1(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="neither 0 nor 1"):
        rows_of(tmp_path, value)


def test_caches_that_users_reported_are_exact_and_claims_are_right() -> None:
    exact = [predict(row) for row in published_rows() if row.metric in ("kv_needed_per_gpu", "fits")]
    assert [prediction.error for prediction in exact] == [0.0] * 5


def test_a_row_without_a_prediction_says_why() -> None:
    sizes = [predict(row) for row in published_rows() if row.family in ("MEM", "KV", "FIT")]
    assert all((size.predicted is None) == bool(size.reason) for size in sizes)
    assert len({size.reason for size in sizes if size.reason}) >= 8
    assert Prediction(sizes[0].row).error is None
