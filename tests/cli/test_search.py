"""`l4spec search`: every form of its answer, and one clear line for what cannot be searched."""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Run

LOAD = ("search", "scout", "--prompt-tokens", "8k", "--output-tokens", "1k", "--concurrency", "8")
ASKED = (*LOAD, "--gpus", "4xH100")


def test_the_table_names_a_command_that_plans_the_winner(run: Run) -> None:
    answer = run(*ASKED, "--tpot", "30ms", "--top", "2", "--explain")
    assert answer.exit_code == 0
    assert "What binds the others" in answer.stdout
    command = next(line for line in answer.stdout.splitlines() if line.startswith("check")).split()[1:]
    planned = run(*command[1:])
    assert planned.exit_code == 0
    assert "TPOT" in planned.stdout


def test_json_csv_and_svg_tell_the_same(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "front.svg"
    document = json.loads(run(*ASKED, "--format", "json", "--svg", str(picture)).stdout)
    rows = list(csv.DictReader(io.StringIO(run(*ASKED, "--format", "csv").stdout)))
    assert len(rows) == len(document["ranked"]) > 5
    assert float(rows[0]["ttft_seconds"]) == pytest.approx(document["ranked"][0]["ttft_seconds"])
    titles = [node.text or "" for node in ElementTree.parse(picture).iter() if node.tag.endswith("title")]
    points = [title for title in titles if "tokens/s" in title and "of a user" in title]
    assert len(points) == len(document["front"]) > 2


def test_the_winner_is_emitted_as_a_launch(run: Run) -> None:
    launch = run(*ASKED, "--quantization", "bf16", "--emit", "vllm")
    assert launch.exit_code == 0
    assert "vllm serve" in launch.stdout


def test_an_impossible_level_leaves_with_3_and_says_what_to_loosen(run: Run) -> None:
    answer = run(*ASKED, "--ttft", "1ms")
    assert answer.exit_code == 3
    loosened = re.search(r"--ttft (\d+)ms", answer.stdout)
    assert loosened is not None
    assert int(loosened[1]) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*ASKED, "--ttft", "0"), "--ttft: expected a time above 0"),
        ((*ASKED, "--ttft", "0s"), "--ttft: expected a time above 0"),
        ((*ASKED, "--tpot", "33"), "--tpot: expected a time above 0 with its unit"),
        ((*LOAD, "--gpus", "8xFOO"), "--gpus: no hardware is called 'FOO'"),
        ((*ASKED, "--quantization", "int3"), "no quantization scheme is called 'int3'"),
        ((*LOAD, "--gpus", ","), "names nothing"),
        ((*ASKED, "--rate", "2/s"), "leave one out"),
        ((*ASKED, "--dp", "2"), "--dp: a search chooses the number of replicas"),
        (("search", "scout"), "--prompt-tokens: a search needs the length of requests"),
    ],
)
def test_what_cannot_be_searched_gets_one_line_and_exit_code_2(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not answer.stdout
