"""`l4spec run` refuses what cannot be done before any process starts."""

import pytest

from tests.cli.conftest import Run

WRONG = {
    "a degree that heads do not allow": (
        "--tp 3 --steps 1",
        "error: tp3 ep1 pp1 dp1: tp=3 does not divide 10 (query heads)",
    ),
    "more stages than layers": ("--pp 5 --steps 1", "error: tp1 ep1 pp5 dp1: pp=5 exceeds the 4 layers"),
    "experts that ranks cannot share": ("--ep 6 --batch 6 --steps 1", "ep=6 does not divide 128 (experts)"),
    "ranks that the degrees do not make": (
        "--tp 2 --nproc 3 --steps 1",
        "--nproc: tp2 ep1 pp1 dp1 makes 2 ranks, not 3",
    ),
    "a batch that cannot be divided": ("--dp 3 --steps 1", "--batch: 4 sequences cannot be divided among 3 ranks"),
    "too many tokens": ("--context 99999999 --steps 1", "--context: 99,999,999 tokens, the model is made for"),
    "nothing to do": ("", "nothing to do"),
    "a prompt that nobody reads": ("--ids 1,2 --steps 1", "--ids: needs --generate"),
    "a prompt of unknown tokens": ("--ids 999999 --generate 1", "--ids: expected token ids below"),
    "words as a prompt": ("--ids hello --generate 1", "--ids: expected token ids"),
    "nowhere to go on from": ("--resume --steps 1", "--resume: needs --checkpoint"),
    "nowhere to save": ("--save-every 2 --steps 1", "--save-every: needs --checkpoint"),
    "nothing to compute again": ("--checkpointing full --generate 1", "--checkpointing: needs --steps"),
    "an unknown way to compute again": ("--checkpointing some --steps 1", "'some' is not one of"),
    "tokens that tp cannot share": (
        "--tp 2 --sequence-parallel on --context 33 --steps 1",
        "--context: 33 tokens cannot be divided among 2 ranks (tp)",
    ),
    "weights that are not there": ("--weights nowhere --generate 1", "--weights: 'nowhere' is no checkpoint folder"),
    "a device that holds nothing": ("--device meta --steps 1", "--device: expected a device that computes"),
    "an unknown field": ("--set text.vocab=1 --steps 1", "did you mean"),
}


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a rank would fail the test; a world of the caller's is none of ours."""

    def start(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("l4spec.runtime.parallel.run.launch._start", start)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_refused_before_any_process_starts(name: str, run: Run) -> None:
    options, words = WRONG[name]
    result = run("run", "tiny/maverick", *options.split())
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_ranks_that_need_more_memory_than_is_free_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l4spec.runtime.parallel.run.memory_check.free_bytes", lambda _: 2**20)
    result = run("run", "tiny/maverick", "--tp", "2", "--steps", "1")
    assert result.exit_code == 2
    assert "2 ranks need at least" in result.stderr


def test_all_problems_are_said_at_once(run: Run) -> None:
    result = run("run", "tiny/maverick", "--tp", "3", "--dp", "3", "--resume", "--steps", "1")
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: "] * 3


def test_a_run_in_a_broken_world_says_what_torchrun_would_have_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    result = run("run", "tiny/maverick", "--steps", "1")
    assert result.exit_code == 2
    assert "expected RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment" in result.stderr
