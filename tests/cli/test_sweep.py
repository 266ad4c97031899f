"""`l4spec sweep`: every form of its rows, and one clear line for what cannot be swept."""

import csv
import io
import json

import pytest

from tests.cli.conftest import Run

LISTS = ("--set", "text.parts.moe.num_experts=8,16", "--set", "text.parts.moe.num_experts_per_token=1,2")
ASKED = ("sweep", "scout", *LISTS, "--gpus", "8xH100")


def test_table_json_and_csv_say_the_same(run: Run) -> None:
    table = run(*ASKED, "--tokens", "15T", "--train-gpus", "2048xH100")
    document = json.loads(run(*ASKED, "--format", "json").stdout)
    rows = list(csv.DictReader(io.StringIO(run(*ASKED, "--format", "csv").stdout)))
    assert table.exit_code == 0
    assert len(rows) == len(document["rows"]) == 4
    assert [int(row["params"]) for row in rows] == [row["params"] for row in document["rows"]]
    assert "GPU-hours" in table.stdout
    assert "15.00T tokens on 2048xH100, 2,048 sequences per step" in table.stdout
    assert all(f"{row['params'] / 1e9:.2f}B" in table.stdout for row in document["rows"])


def test_what_no_spec_can_be_is_a_row_and_a_reason(run: Run) -> None:
    answer = run("sweep", "scout", "--set", "text.parts.moe.num_experts_per_token=1,17")
    assert answer.exit_code == 0
    assert "num_experts_per_token (17) must not exceed num_experts (16)" in answer.stdout


def test_linked_fields_follow(run: Run) -> None:
    lists = ("--set", "text.hidden_size=5120,6144", "--link", "vision.projector.output_size=text.hidden_size")
    document = json.loads(run("sweep", "scout", *lists, "--format", "json").stdout)
    assert [row["problem"] for row in document["rows"]] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "text.hidden_size=4096"), "--link vision.projector.output_size=text.hidden_size"),
        (("--widen", "0"), "--widen: expected a factor from 0.1 to 100"),
        (("--link", "foo"), "--link: expected two fields"),
        (("--tokens", "15T"), "--tokens: a training run needs GPUs"),
        (("--gpus", "8xFOO"), "no hardware is called 'FOO'"),
        (("--zero-stage", "3"), "--zero-stage: the training run of a sweep"),
        (("--mode", "train"), "--mode: a sweep plans serving"),
        (("--jobs", "0"), "--jobs: expected 1 to 1,024"),
        (("--set", "text.parts.moe.num_experts="), "expected values with commas"),
    ],
)
def test_what_cannot_be_swept_gets_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    answer = run("sweep", "scout", *arguments)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not answer.stdout
