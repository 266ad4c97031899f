"""Whatever a user does wrong: exit code 2, one line a problem, the nearest spelling, and never a traceback."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from l4spec.cli import app
from tests.cli.conftest import Run

WRONG = {
    "an unknown spec": ("plan scot", "did you mean 'scout'"),
    "an unknown GPU": ("plan scout --gpus 8xH10", "did you mean 'h100'"),
    "an unknown scheme": ("plan scout -q fp8-blok", "did you mean 'fp8-block'"),
    "a scheme of other bits": ("plan scout -q int3", "(one of: awq, bf16, "),
    "a GPU of another number": ("plan scout --gpus 8xRTX5060", "(one of: a10, "),
    "a size that is a slip": ("plan scout --set text.parts.moe.num_experts=1000000000000", "at most 16,777,216, found"),
    "an unknown engine": ("plan scout --engine vlm", "did you mean 'vllm'"),
    "an unknown cache format": ("plan scout --kv-dtype fp7", "one of: bf16"),
    "an unknown command": ("pln scout", "plan"),
    "an unknown option": ("plan scout --gpu 8xH100", "--gpus"),
    "an objective that was renamed": ("plan scout --objective balanced", "it is called max-free-memory now"),
    "an unknown objective": ("plan scout --objective best", "fastest"),
    "an unknown format": ("graph scout --format bmp", "mermaid"),
    "an unknown listing": ("ls gpus", "hardware"),
    "no tokens": ("plan scout --context 0", "error: --context: expected"),
    "more tokens than the model takes": ("plan scout --context 99999999999999999999", "max_seq_len"),
    "a word for a number": ("plan scout --context many", "--context"),
    "half a token": ("plan scout --context 0.0015k", "like 8192, 100k, 1M or 128Ki, found '0.0015k'"),
    "a minus before tokens": ("plan scout --context -1", "like 8192, 100k, 1M or 128Ki"),
    "a unit of memory for tokens": ("plan scout --context 1MB", "like 8192, 100k, 1M or 128Ki"),
    "no tokens to measure": ("measure tiny/scout --prefill 0", "--prefill"),
    "fewer steps than none": ("measure tiny/scout --decode -1", "--decode"),
    "a negative batch": ("plan scout --batch -1", "--batch"),
    "an illegal degree": ("plan scout --gpus 3xH100 --tp 3", "tp=3"),
    "degrees that do not fill the GPUs": ("plan scout --gpus 8xH100 --tp 16", "product"),
    "no number for a share": ("plan scout --memory-fraction nan", "--memory-fraction"),
    "images for the blind": ("plan mobilellm-r1-950m --images 1", "--images"),
    "tiles for the blind": ("plan mobilellm-r1-950m --tiles 1", "--tiles"),
    "one model's option for all models": ("plan --tp 2", "--tp needs a SPEC"),
    "a training option while serving": ("plan scout --zero-stage 3", "--mode train"),
    "an override that leads nowhere": ("plan scout --set text.parts.moe.num_expert=3", "did you mean 'num_experts'"),
    "an override without a value": ("show scout --set text", "path=value"),
    "a folder as a spec": ("validate specs", "folder"),
    "a device as a spec": ("validate /dev/zero", "device"),
    "a folder to write to": ("schema --out .", "folder"),
    "a place that is not there": ("schema --out no/such/folder.json", "cannot write"),
    "an empty scheme": ("plan scout --quantization=", "quantization scheme"),
    "too many images": ("plan scout --images 999999", "--images: expected 0 to 10,000"),
    "no context for all models": ("plan --context 0", "--context: expected"),
    "a level that is none": ("graph scout --level layer", "'block', 'op'"),
    "nothing to compare": ("compare", "missing argument"),
}


@pytest.mark.parametrize("arguments, words", WRONG.values(), ids=WRONG.keys())  # noqa: PT006
def test_wrong_input_leaves_with_2_and_says_what_was_meant(run: Run, arguments: str, words: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2, (result.stdout, result.exception)
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_all_problems_are_reported_at_once(run: Run) -> None:
    result = run(
        "plan", "scout", "--set", "text.hidden_size=0", "--set", "text.vocab=1", "--set", "vision.patch_size=x"
    )
    assert result.exit_code == 2
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 3


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=40).filter(lambda text: not text.startswith("-")))
def test_no_text_as_a_spec_raises(text: str) -> None:
    result = CliRunner().invoke(app, ["plan", text])
    assert result.exit_code in (0, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)


@settings(max_examples=60)
@given(
    option=st.sampled_from(["--gpus", "-q", "--kv-dtype", "--engine", "--set", "--optimizer"]),
    text=st.text(max_size=30),
)
def test_no_text_as_an_option_raises(option: str, text: str) -> None:
    result = CliRunner().invoke(
        app, ["plan", "tiny/scout", f"{option}={text}" if option[1] == "-" else f"{option}{text}"]
    )
    assert result.exit_code in (0, 2, 3)
    assert result.exception is None or isinstance(result.exception, SystemExit)


@settings(max_examples=40, deadline=None)
@given(
    option=st.sampled_from(["--context", "--batch", "--tp", "--ep", "--pp", "--dp", "--tiles"]), number=st.integers()
)
def test_no_number_as_an_option_raises(option: str, number: int) -> None:
    result = CliRunner().invoke(app, ["plan", "tiny/scout", f"{option}={number}", "--gpus", "2xH100"])
    assert result.exit_code in (0, 2, 3)
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_debugging_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L4SPEC_DEBUG", "1")
    assert type(run("plan", "scot").exception).__name__ == "SpecError"


def command(*arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-W", "error", "-m", "l4spec.cli", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


def test_a_closed_pipe_is_no_error_message() -> None:
    with command("graph", "scout", "--level", "op", "--format", "json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1


SLEEPER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start tests with it ignored
import sys, time
import l4spec.cli, l4spec.cli.show

def sleep(*_):
    print("asleep", flush=True)
    time.sleep(60)

l4spec.cli.show.compiled = sleep
sys.argv = ["l4spec", "show", "scout"]
l4spec.cli.main()
"""


def test_ctrl_c_is_quiet_and_leaves_with_130() -> None:
    line = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asleep\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_terminal_can_show_a_plan(encoding: str) -> None:
    with command("plan", "scout", "--gpus", "8xH100", "-v", PYTHONIOENCODING=encoding) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"")
    assert ("█" in out.decode(encoding)) == (encoding == "utf-8")
