"""`l4spec run`: it trains the same under every layout, goes on where it stopped, and ends whole when a rank fails."""

import math
import os
import re
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from l4spec.runtime.build import build
from l4spec.runtime.parallel.run.launch import threads_of_rank
from l4spec.training.run.synthetic import batch_of
from tests.distributed.command import Command, started
from tests.distributed.whole import bound_of, graph_from
from tests.distributed.world import FORKS, run_world

TRAIN = "run tiny/maverick --dtype fp32 --batch 4 --context 16 --save-every 2 --checkpoint saved"
ENDLESS = f"{TRAIN} --steps 100000"
SECONDS = 20.0
"""A run must have ended by then: far below the timeout of collectives, which is a minute."""


def saved_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "saved").iterdir())


def test_a_killed_rank_ends_all_with_its_name_and_another_layout_goes_on_from_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    with started(tmp_path, f"{ENDLESS} --tp 2 --ep 2 --nproc 4") as command:
        command.wait_for("step 5 ")
        os.kill(command.pids[2], signal.SIGKILL)
        code, messages = command.ended(SECONDS)
    assert code == 4
    assert messages == ["error: rank 2 was killed by SIGKILL (by the system, if memory ran out)"]
    assert all(re.fullmatch(r"step-\d{8}", name) for name in saved_in(tmp_path))
    last = int(saved_in(tmp_path)[-1].removeprefix("step-"))
    with started(tmp_path, f"{TRAIN} --steps {last + 1} --dp 2 --resume") as command:
        command.process.join(60)
    assert command.process.exitcode == 0, command.err.read_text()
    assert f"after step {last}\n" in command.out.read_text()


def losses_of(folder: Path, options: str) -> list[float]:
    """The losses that a run prints, which must end well."""
    with started(folder, f"{TRAIN} {options}") as command:
        command.process.join(60)
    assert command.process.exitcode == 0, command.err.read_text()
    return [float(loss) for loss in re.findall(r"loss (\S+)", command.out.read_text())]


def test_every_nth_step_is_printed_and_the_last(tmp_path: Path) -> None:
    line = "run tiny/maverick --dtype fp32 --batch 4 --context 16 --nproc 1 --steps 7 --log-every 3"
    with started(tmp_path, line) as command:
        command.process.join(60)
    assert command.process.exitcode == 0, command.err.read_text()
    assert re.findall(r"step (\d+) ", command.out.read_text()) == ["3", "6", "7"]


def drift(loss: float, num_steps: int) -> float:
    """How far losses of layouts may be apart, relative to `loss`, by rounding alone after steps of AdamW in fp32.

    b bounds the relative rounding error of logits and gradients (`bound_of`); a loss is a mean over tokens, whose
    errors have random signs. AdamW's first steps move every weight by about the learning rate, by the sign of its
    gradient. That sign is rounding's where a gradient is below b times the usual one, which a share b of them is: those
    weights, up to 2 lr apart, are 2 lr sqrt(b n) apart together (n weights), and a later step's gradient, of size |g|
    and random in their direction, tells 2 lr sqrt(b) |g| of it. Steps add up as a random walk.
    """
    graph, tokens = graph_from("tiny/maverick"), 4 * 16
    model = build(graph, dtype="fp32").train()
    ids = batch_of(0, 0, 4, 16, graph.model.text.head.vocab_size)
    torch.autograd.backward(torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    size = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    bound, learning_rate = bound_of(graph, "fp32"), 1e-3
    step = 2 * learning_rate * math.sqrt(bound) * float(size) / loss
    return bound / math.sqrt(tokens) + math.sqrt(num_steps - 1) * step


def test_stages_and_shards_train_to_the_losses_of_one_rank_and_go_on_from_each_others_checkpoints(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / name for name in ("alone", "staged")]
    for folder in folders:
        folder.mkdir()
    alone = losses_of(folders[0], "--steps 3")
    staged = losses_of(folders[1], "--steps 2 --pp 2") + losses_of(folders[1], "--steps 3 --tp 2 --resume")
    assert len(alone) == 3
    assert staged == pytest.approx(alone, rel=drift(alone[0], num_steps=3))


def exhaust_memory_of_rank_1() -> None:
    """Let rank 1 ask for more memory than any machine has, in its second step."""
    from l4spec.runtime.parallel.step import train_step
    from l4spec.training import loop

    calls: list[int] = []

    def hungry(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) == 2:
            torch.empty(2**52)
        result: torch.Tensor = train_step(*args, **options)
        return result

    patch.object(loop, "train_step", hungry).start()


def raise_in_rank_1() -> None:
    from l4spec.training import loop

    def broken(*_: Any, **__: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise KeyError("no such thing")
        time.sleep(60)

    patch.object(loop, "train_step", broken).start()


def fill_the_disk_of_rank_1() -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    write_data = FileSystemWriter.write_data

    def full(self: Any, plan: Any, planner: Any) -> Any:
        if os.environ["RANK"] == "1" and "00000004" in str(self.path):
            raise OSError(28, "No space left on device")
        return write_data(self, plan, planner)

    FileSystemWriter.write_data = full  # type: ignore[method-assign]


FAULTS = {
    "a full disk": (
        fill_the_disk_of_rank_1,
        2,
        r"error: cannot write saved/step-00000004: rank 1: No space left on device",
    ),
    "memory runs out": (exhaust_memory_of_rank_1, 4, r"error: rank 1 is out of memory: .*can't allocate memory.*"),
    "an error": (raise_in_rank_1, 4, r"error: rank 1 failed: KeyError: 'no such thing'"),
}


@pytest.mark.parametrize("fault", [*[*FAULTS][:2], pytest.param([*FAULTS][2], marks=pytest.mark.slow)])
def test_whatever_fails_on_one_rank_ends_all_with_one_message(fault: str, tmp_path: Path) -> None:
    change, exit_code, message = FAULTS[fault]
    with started(tmp_path, f"{ENDLESS} --ep 2", change) as command:
        command.process.join(60)
        code, messages = command.ended(SECONDS)
    assert code == exit_code
    assert len(messages) == 1
    assert re.fullmatch(message, messages[0]), messages
    if fault == "a full disk":
        assert saved_in(tmp_path) == ["step-00000002"]


def interrupt(command: Command) -> None:
    os.killpg(command.process.pid or 0, signal.SIGINT)


def terminate(command: Command) -> None:
    os.kill(command.process.pid or 0, signal.SIGTERM)


def stop_rank_1(command: Command) -> None:
    os.kill(command.pids[1], signal.SIGSTOP)


ENDS = {
    "Ctrl-C": (interrupt, 130, "interrupted: the last checkpoint is whole"),
    "SIGTERM": (terminate, 143, "terminated: the last checkpoint is whole"),
    "a rank that hangs": (stop_rank_1, 4, "error: rank 1 has not answered for 5 s"),
}


@pytest.mark.parametrize("name", ["Ctrl-C", "a rank that hangs", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_every_end_is_said_once_and_leaves_no_process_behind(name: str, tmp_path: Path) -> None:
    act, exit_code, message = ENDS[name]
    with started(tmp_path, f"{ENDLESS} --ep 2 --timeout 5") as command:
        command.wait_for("step 1 ")
        act(command)
        code, messages = command.ended(SECONDS)
    assert code == exit_code
    assert messages == [message]


def test_ranks_end_by_themselves_when_their_launcher_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, f"{ENDLESS} --ep 2") as command:
        command.wait_for("step 1 ")
        os.kill(command.process.pid or 0, signal.SIGKILL)
        command.process.join(5)
        assert command.has_no_orphans(SECONDS)


def by_hand(folder: Path, rank: int, world: int, port: int, line: str) -> Any:
    """A rank as torchrun starts it, by its environment."""
    folder.mkdir()
    for name in ("out", "err"):
        (folder / name).write_text("")
    process = FORKS.Process(target=_by_hand, args=(str(folder), rank, world, port, line))
    process.start()
    return process


def _by_hand(folder: str, rank: int, world: int, port: int, line: str) -> None:
    from tests.distributed.command import run_main

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run_main(folder, line.split(), None)


APART = {
    "another seed": (["--ep 2 --seed 1", "--ep 2 --seed 2"], 2, 2, r"rank 1 was .* rank 0: --seed 2 instead of 1"),
    "another model": (["--ep 2", "--ep 2 --set text.vocab_size=300"], 2, 2, r"rank 1 was .* rank 0: SPEC .*"),
    "too few for the layout": (["--tp 2 --ep 2"] * 2, 2, 2, r"tp2 ep2 pp1 dp1 makes 4 ranks, and 2 are running"),
    "a missing peer": (["--ep 2 --timeout 1"], 2, 4, r"rank 1 of 2 has not joined within 1 s"),
}


@pytest.mark.parametrize(
    "name", ["another seed", *(pytest.param(name, marks=pytest.mark.slow) for name in [*APART][1:3]), "a missing peer"]
)
def test_ranks_that_do_not_belong_together_say_so_once(name: str, tmp_path: Path) -> None:
    lines, world, exit_code, message = APART[name]
    port = free_port()
    processes = [
        by_hand(tmp_path / str(rank), rank, world, port, f"run tiny/maverick --steps 1 {line}")
        for rank, line in enumerate(lines)
    ]
    for process in processes:
        process.join(30)
        process.kill()
    assert [process.exitcode for process in processes] == [exit_code] * len(lines)
    messages = [line for rank in range(len(lines)) for line in (tmp_path / str(rank) / "err").read_text().splitlines()]
    assert len(messages) == 1, messages
    assert re.fullmatch(f"error: {message}", messages[0]), messages


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def continued_and_straight(rank: int, folder: str) -> list[str]:
    """Names of weights that differ, bit by bit, between four steps at once and two, saved and read, and two more."""
    from l4spec.runtime.build import build
    from l4spec.runtime.parallel.checkpoints import load_sharded, save_sharded
    from l4spec.runtime.parallel.checkpoints.local_shards import shards_of_model
    from l4spec.runtime.parallel.distribute import distribute
    from l4spec.sharding.layout import Layout
    from l4spec.spec.recipe.phase import OptimizerSpec
    from l4spec.training.loop import LoopSettings, TrainBatch, train_steps
    from l4spec.training.optimizer import make_optimizer
    from l4spec.training.run.job import Job
    from l4spec.training.run.synthetic import batch_of

    job = Job("tiny/maverick", Layout(ep=2, dp=2), dtype="fp32")

    def fresh(seed: int | None) -> tuple[Any, Any]:
        model = distribute(build(job.graph, "meta", "fp32"), job.layout, device="cpu", seed=seed, train=True)
        return model, make_optimizer(model, OptimizerSpec(learning_rate=1e-2))

    def run(model: Any, optimizer: Any, steps: range) -> None:
        def batch(step: int) -> TrainBatch:
            ids = batch_of(0, step, 4, 16, 128)
            return TrainBatch(ids[:, :-1], ids[:, 1:])

        list(train_steps(model, optimizer, batch, LoopSettings(steps.stop), start=steps.start))

    straight, optimizer = fresh(0)
    run(straight, optimizer, range(2))
    save_sharded(straight, f"{folder}/two", optimizer)
    run(straight, optimizer, range(2, 4))
    continued, optimizer = fresh(None)
    load_sharded(continued, f"{folder}/two", optimizer)
    run(continued, optimizer, range(2, 4))
    expected = shards_of_model(straight)
    return [
        name
        for name, shard in shards_of_model(continued).items()
        if not torch.equal(shard.tensor, expected[name].tensor)
    ]


def test_a_run_that_goes_on_has_every_bit_of_one_that_never_stopped(tmp_path: Path) -> None:
    assert run_world(4, continued_and_straight, str(tmp_path)) == [[], [], [], []]


ROOT_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):\n.*?rank +: (\d+) .*?traceback : ([^\n]*) by PID (\d+)", re.S
)
"""How torchrun reports the process whose end it saw first."""


@pytest.mark.slow
def test_under_torchrun_a_killed_rank_is_named_once_and_resuming_goes_on(tmp_path: Path) -> None:
    """By torchrun itself: it sees its process end within a tenth of a second, and ends the others before they ask why.

    Should they be faster, their one message must name the same rank.
    """
    import subprocess
    import sys

    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "l4spec"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*line, *ENDLESS.split(), "--ep", "2"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        for printed in run.stdout:
            if printed.startswith("step 3 "):
                break
        victim = rank_1_of(run.pid)
        os.kill(victim, signal.SIGKILL)
        stderr = run.communicate(timeout=SECONDS)[1]
    assert run.returncode == 1
    assert ROOT_CAUSE.findall(stderr) == [("1", "Signal 9 (SIGKILL) received", str(victim))]
    ours = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert ours in ([], ["error: rank 1 has ended without a message (killed, or its machine is gone)"])
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    last = int(saved_in(tmp_path)[-1].removeprefix("step-"))
    assert last >= 2
    again = f"{TRAIN} --steps {last + 1} --ep 2 --resume".split()
    resumed = subprocess.run([*line, *again], cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    assert f"after step {last}\n" in resumed.stdout


def rank_1_of(agent: int) -> int:
    """The process of rank 1 among the children of torchrun."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if (
                b"\0RANK=1\0" in b"\0" + path.read_bytes()
                and f"PPid:\t{agent}\n" in (path.parent / "status").read_text()
            ):
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError("no rank 1")


def test_a_narrow_model_computes_on_one_thread_and_a_wide_one_on_its_share_of_the_cores() -> None:
    assert threads_of_rank(1, 512, 16) == 1
    assert threads_of_rank(1, 5120, 16) == 16
    assert threads_of_rank(4, 5120, 16) == 4
    assert threads_of_rank(32, 5120, 16) == 1
