"""The generations table: what the planner computes, held to sums by hand, beside what is printed."""

from functools import cache
from pathlib import Path

import pytest

from l4spec.report.generations import Generation, generations, generations_text

ROOT = Path(__file__).parents[2]


@cache
def rows() -> dict[str, Generation]:
    return {row.printed.spec: row for row in generations()}


def test_the_page_is_what_its_command_writes() -> None:
    written = (ROOT / "docs" / "generations.md").read_text(encoding="utf-8")
    assert written == generations_text(), "run: python -m l4spec.report.generations > docs/generations.md"


def test_parameters_are_those_of_the_released_dimensions() -> None:
    attention, ffn, norms = 4 * 8192**2, 3 * 8192 * 22016, 2 * 8192
    assert rows()["compare/llama-65b"].total == 2 * 32000 * 8192 + 80 * (attention + ffn + norms) + 8192
    assert rows()["scout"].total == 108_641_793_536
    assert rows()["maverick"].active == 17_184_691_200


@pytest.mark.parametrize(("spec", "bytes_of_weights"), [("compare/llama-3-70b", 2 * 70_553_706_496)])
def test_printed_gpus_that_cannot_hold_the_weights_are_refused(spec: str, bytes_of_weights: int) -> None:
    assert bytes_of_weights > 80 * 1024**3
    assert not rows()[spec].fits
    assert rows()[spec].least_gpus == 2


def test_a_dense_model_reads_its_weights_for_every_token() -> None:
    """The bound of Llama 2 70B on 2 x A100: no more than its weights, embedding aside, at 2,039 GB/s a GPU."""
    row = rows()["compare/llama-2-70b"]
    read = 2 * (row.total - 32000 * 8192)
    assert 0.9 < row.bound / (2 * 2039e9 / read) <= 1
    assert row.estimate < row.bound


def test_times_are_of_gpus_that_hold_the_model() -> None:
    for row in rows().values():
        assert row.timed_gpus >= row.least_gpus
        assert row.fits == (row.timed_gpus == row.printed.num_gpus)
