"""At the terminal: width, colour, completion, JSON of every listing, and words that help."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from l4spec.cli.ls import Listing
from tests.cli.conftest import Run

COMMANDS = (
    "plan scout --gpus 8xH100",
    "plan scout --gpus 8xH100 -v",
    "plan scout --gpus 8xH100 --explain",
    "plan scout --gpus 1xH100",
    "plan",
    "plan recipes/scout",
    "compare scout maverick deepseek-v3 llama-3-8b --gpus 8xH100",
    "verify articles/maverick",
    "show behemoth",
    "ls",
    "ls hardware",
    "ls quantization",
    "ls kinds",
)
MAIN = "import sys, l4spec.cli; sys.argv[0] = 'l4spec'; l4spec.cli.main()"


@pytest.mark.parametrize("command", COMMANDS)
def test_lines_fit_the_terminal(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = run(*command.split()).stdout.splitlines()
        assert max(map(len, lines)) <= columns, max(lines, key=len)
    monkeypatch.delenv("COLUMNS")
    assert run(*command.split()).stdout.splitlines() == lines  # piped


def at_a_terminal(*arguments: str, **environment: str) -> str:
    """What the command prints to a terminal of colours."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    main, terminal = pty.openpty()
    command = [sys.executable, "-c", MAIN, *arguments]
    environment = {**inherited, "TERM": "xterm", **environment}
    printed = b""
    with subprocess.Popen(command, stdout=terminal, stdin=subprocess.DEVNULL, env=environment):
        os.close(terminal)
        try:
            while piece := os.read(main, 65536):
                printed += piece
        except OSError:  # the other end is closed
            pass
    os.close(main)
    return printed.decode()


def test_the_verdict_is_green_or_red_on_a_terminal_that_wants_colours(run: Run) -> None:
    assert "\033[32mLlama-4-Scout" in at_a_terminal("plan", "scout", "--gpus", "8xH100")
    assert "\033[31mLlama-4-Scout" in at_a_terminal("plan", "scout", "--gpus", "1xH100")
    assert "\033" not in at_a_terminal("plan", "scout", "--gpus", "8xH100", NO_COLOR="1")
    assert "\033" not in at_a_terminal("plan", "scout", "--gpus", "8xH100", TERM="dumb")
    assert "\033" not in run("plan", "scout", "--gpus", "8xH100").stdout


def completions(*words: str, order: str = "complete_bash") -> list[str]:
    environment = {**os.environ, "_L4SPEC_COMPLETE": order}
    environment |= {"COMP_WORDS": " ".join(("l4spec", *words)), "COMP_CWORD": str(len(words))}
    done = subprocess.run([sys.executable, "-c", MAIN], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_names() -> None:
    assert completions("pl") == ["plan"]
    assert completions("plan", "scout", "--quant") == ["--quantization"]
    assert "scout" in completions("plan", "sc")
    assert "8xh200" in completions("plan", "scout", "--gpus", "8xh2")
    assert completions("plan", "scout", "-q", "w4a16-f") == ["w4a16-ffn"]
    assert "vllm-hybrid" in completions("plan", "scout", "--engine", "vllm")
    assert "complete" in completions(order="bash_source")
    assert completions(order="bash_source") == completions(order="source_bash")


@pytest.mark.parametrize("what", [listing.value for listing in Listing])
def test_every_listing_is_json_and_names_what_the_table_names(what: str, run: Run) -> None:
    document = json.loads(run("ls", what, "--format", "json").stdout)
    assert document["l4spec_ls"] == 1
    table = run("ls", what).stdout
    assert len(document["entries"]) >= 3
    assert [entry["name"] for entry in document["entries"] if entry["name"] not in table] == []


def test_a_machine_comes_with_the_source_of_each_number(run: Run) -> None:
    listed = json.loads(run("ls", "hardware", "--format", "json").stdout)["entries"]
    bandwidth = next(entry for entry in listed if entry["name"] == "h100-sxm")["memory"]["bandwidth"]
    assert bandwidth["value"] == 3.35e12
    assert "datasheet" in bandwidth["source"]


def test_a_model_is_shown_as_json(run: Run) -> None:
    document = json.loads(run("show", "scout", "--format", "json").stdout)
    assert document["parameters"] == 108_641_793_536
    assert [layer["attention"] for layer in document["layers"][:4]] == ["local", "local", "local", "global"]
    assert sum(part["count"] for part in document["parts"] if part["kind"] == "moe") == 48


REFUSALS = (
    ("plan llama-4-scout", "did you mean 'scout'?"),
    ("plan meta-llama/Llama-4-Maverick-17B-128E-Instruct", "did you mean 'maverick'?"),
    ("version", "did you mean 'l4spec --version'?"),
    ("--foo", "error: no such option: --foo"),
    ("plan scout --gpus 8xH100 --gpus 4xH200", "--gpus: is given 2 times (give it once)"),
    ("plan scout --set num_experts=32", "unknown field (it is text.parts.moe.num_experts)"),
    ("plan scout --gpus 8xH100 --tp 16", "needs 16 GPUs, and 8xh100-sxm has 8"),
    ("plan scout --gpus 8xH100 --tp 3", "= 3 devices do not divide the 8 GPUs"),
    ("plan scout --batch 1.5", "expected a whole number, found '1.5'"),
    ("plan scout --gpus 8xH100 --usd-per-gpu-hour cheap", "expected a number, found 'cheap'"),
    ("accuracy --split foo", "'foo' is not one of"),
    ("search scout --prompt-tokens 8k --output-tokens 1k --tpot 0", "expected a time above 0"),
)


@pytest.mark.parametrize(("command", "says"), REFUSALS)
def test_a_wrong_word_gets_one_line_that_helps(command: str, says: str, run: Run) -> None:
    done = run(*command.split())
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Input should" not in done.stderr
    assert done.stdout == ""


def test_names_are_found_in_any_case_and_numbers_in_any_spelling(run: Run) -> None:
    assert run("plan", "Scout", "--batch", "1k").stdout == run("plan", "scout", "--batch", "1000").stdout
    one, other = (run("plan", "scout", "--context", text).stdout for text in ("1_000_000", "1M"))
    assert one == other


def test_the_longest_context_is_planned_when_it_is_asked_for(run: Run) -> None:
    plan = json.loads(run("plan", "scout", "--gpus", "8xH100", "--context", "max", "--format", "json").stdout)
    assert plan["fits"]
    longest = plan["max_context"]
    assert plan["deployment"]["context"] == plan["request"]["context"] == longest
    assert run("plan", "scout", "--gpus", "8xH100", "--context", str(longest + 1)).exit_code == 3
    assert "10,485,760 tokens" in run("plan", "scout", "--context", "max").stdout


def test_a_config_and_a_folder_with_one_are_planned_as_they_are(run: Run, tmp_path: Path) -> None:
    assert run("export", "compare/llama-3-8b", "--out", str(tmp_path / "config.json")).exit_code == 0
    plans = [run("plan", str(path), "--gpus", "1xH100") for path in (tmp_path, tmp_path / "config.json")]
    assert [plan.exit_code for plan in plans] == [0, 0]
    assert plans[0].stdout == plans[1].stdout
    assert "8.03B parameters" in plans[0].stdout
