"""`l4spec measure` of a layout: what every rank holds, computes and hands over is planned; and how the command ends."""

import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from l4spec.runtime.measure import rank as rank_module
from l4spec.sharding.layout import Layout
from l4spec.verification.measure import MeasuredRow, MeasureReport
from tests.distributed.command import started
from tests.distributed.test_run import interrupt, terminate

FAST = "--prefill 40 --decode 3"
SECONDS = 20.0
UNEVEN = """\
l4spec: 1
name: uneven
text:
  hidden_size: 24
  vocab_size: 51
  max_seq_len: 128
  norm: {kind: rmsnorm, eps: 1.0e-5}
  tie_embeddings: true
  parts:
    one: {kind: gqa, num_heads: 8, num_kv_heads: 1, head_dim: 4, mask: {kind: sliding_window, size: 23},
          position: {kind: rope, theta: 10000}, qk_norm: {kind: rmsnorm}, qkv_bias: true, output_bias: true}
    capped: {kind: gqa, num_heads: 4, num_kv_heads: 2, head_dim: 5, mask: {kind: causal}, logit_softcap: 2.0,
             position: {kind: none}, temperature: {floor_scale: 4, attn_scale: 0.1}}
    latent: {kind: mla, num_heads: 4, q_lora_rank: null, kv_lora_rank: 12, qk_nope_head_dim: 6, qk_rope_head_dim: 4,
             v_head_dim: 12, mask: {kind: causal}, position: {kind: rope, theta: 10000}, norm_eps: 1.0e-6}
    mlp: {kind: mlp, intermediate_size: 20}
    few: {kind: moe, num_experts: 6, num_experts_per_token: 2, intermediate_size: 12, num_shared_experts: 2,
          shared_gate: true, capacity_factor: 0.8, balance: {auxiliary_loss: 0.01},
          router: {score: softmax, renormalize: true}}
  layers:
    - {attention: one, ffn: few}
    - {attention: latent, ffn: mlp, form: parallel}
    - {attention: capped, ffn: few}
"""
"""A tied vocabulary and experts that no even number divides, one KV head, experts that tokens queue for."""

PASSES = ("prefill", "decode step", "training step")
QUICK = {
    "tiny/maverick --tp 2 --ep 2 --train": PASSES,
    "tiny/scout --pp 2 --dp 2 --batch 4 --dtype bf16 --train": PASSES,
    "uneven.yaml --tp 2 --ep 2 --train": PASSES,
    "uneven.yaml --cp 2 --tp 2": PASSES[:1],
}
SLOW = {
    "tiny/deepseek --tp 2 --pp 2 --dtype bf16 --train": PASSES,
    "tiny/scout --cp 4 --dtype bf16 --prefill 70": PASSES[:1],
    "uneven.yaml --pp 3 --ep 2 --train": PASSES,
    "tiny/scout --ep 2 --tp 2 --train --set text.parts.moe.balance.expert_choice=1.2": PASSES,
    "uneven.yaml --pp 2 --tp 2 --dp 2 --batch 4 --train": PASSES,
    "uneven.yaml --tp 4 --dp 2 --train": PASSES,
    "uneven.yaml --cp 2 --ep 2 --dp 2": PASSES[:1],
    "tiny/maverick --tp 2 --ep 2 --dp 2 --train": PASSES,
    "tiny/maverick --ep 4 --pp 2 --dtype bf16 --batch 8 --train": PASSES,
}


def measured(folder: Path, line: str, exit_code: int = 0, change: Any = None) -> MeasureReport:
    """The report of `l4spec measure LINE`, which must end with this exit code."""
    (folder / "uneven.yaml").write_text(UNEVEN)
    with started(folder, f"measure {FAST} {line} --no-progress --format json --out report.json", change) as command:
        command.process.join(90)
        assert command.process.exitcode == exit_code, command.err.read_text()
    return MeasureReport.model_validate_json((folder / "report.json").read_text())


def by_name(report: MeasureReport) -> dict[tuple[str, str], list[MeasuredRow]]:
    rows: dict[tuple[str, str], list[MeasuredRow]] = defaultdict(list)
    for row in report.rows:
        rows[row.section, row.name].append(row)
    return rows


@pytest.mark.parametrize("line", [*QUICK, *(pytest.param(line, marks=pytest.mark.slow) for line in SLOW)])
def test_every_row_of_every_rank_agrees(line: str, tmp_path: Path) -> None:
    """Exactly, and none is missing: whatever a rank hands to a collective has a row, planned or not."""
    report = measured(tmp_path, line)
    assert report.layout is not None
    everyone = tuple(range(report.layout.num_devices))
    assert report.finished
    assert {row.law for row in report.rows} == {"exact", "shown"}
    assert all(row.agrees for row in report.rows if row.law == "exact")
    passes = (QUICK | SLOW)[line]
    sections = {"parameters", "weights", "KV cache", "experts", "activations", "time"}
    sections |= {f"{what}, {name}" for what in ("executed FLOPs", "collectives") for name in passes}
    assert {row.section for row in report.rows} == sections
    for rows in by_name(report).values():
        ranks = sorted(rank for row in rows for rank in row.ranks)
        assert len(set(ranks)) == len(ranks)
        assert set(ranks) <= set(everyone)
    assert sorted(rank for row in by_name(report)["weights", report.dtype] for rank in row.ranks) == list(everyone)


def test_a_rank_that_holds_something_else_is_named_and_leaves_with_1(tmp_path: Path) -> None:
    report = measured(tmp_path, "tiny/maverick --ep 2", 1, hold_more_on_rank_1)
    wrong = [row for row in report.rows if row.agrees is False]
    assert {(row.section, row.name, row.ranks) for row in wrong} == {
        ("weights", "fp32", (1,)),
        ("weights", "the fullest rank, by `plan`", ()),
    }
    assert [row.measured for row in wrong] == [1 + (row.planned or 0) for row in wrong]


def hold_more_on_rank_1() -> None:
    from l4spec.runtime.module_inventory import module_bytes

    def more(model: Any) -> int:
        return module_bytes(model) + (os.environ["RANK"] == "1")

    patch.object(rank_module, "module_bytes", more).start()


def send_more_on_each_rank() -> None:
    import torch

    from l4spec.runtime.parallel.model import RankModel

    choose_next = RankModel.choose_next

    def chatty(self: RankModel, *args: Any) -> Any:
        torch.distributed.all_reduce(torch.zeros(3), group=self.mesh.data.group)
        return choose_next(self, *args)

    patch.object(RankModel, "choose_next", chatty).start()


def test_a_collective_that_nobody_planned_is_a_row_that_disagrees(tmp_path: Path) -> None:
    report = measured(tmp_path, "tiny/maverick --ep 2", 1, send_more_on_each_rank)
    wrong = {(row.section, row.name): (row.planned, row.measured) for row in report.rows if row.agrees is False}
    assert wrong == {
        ("collectives, decode step", "ep all-reduce"): (0, 12),
        ("collectives, decode step", "ep all-reduce, calls"): (0, 1),
    }


def sleep_in_decode() -> None:
    def sleep(_: Any) -> Any:
        if os.environ["RANK"] == "1":
            time.sleep(60)
        return {}

    patch.object(rank_module._Measured, "_decode", sleep).start()


def fail_in_decode() -> None:
    def fail(_: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise KeyError("no such thing")
        time.sleep(60)

    patch.object(rank_module._Measured, "_decode", fail).start()


def be_late_once_prefill_is_measured() -> None:
    """The time limit comes when both ranks have written what they found in the prefill, and one hangs in decode."""
    from l4spec.runtime.parallel.run import launch

    sleep_in_decode()
    watched = launch._watched

    def late(processes: Any, store: Any, time_limit: float | None) -> Any:
        assert time_limit == 1000
        while not store.check(["measured/0/prefill", "measured/1/prefill"]):
            time.sleep(0.05)
        return watched(processes, store, 0.0)

    patch.object(launch, "_watched", late).start()


def test_a_time_limit_ends_ranks_that_hang_and_keeps_what_all_have_measured(tmp_path: Path) -> None:
    report = measured(tmp_path, "tiny/maverick --ep 2 --time-limit 1000", change=be_late_once_prefill_is_measured)
    rows = by_name(report)
    assert not report.finished
    assert report.agrees
    assert all(row.measured for row in rows["executed FLOPs, prefill", "together"])
    assert [row.measured for row in rows["executed FLOPs, decode step", "together"]] == [None]


ENDS: dict[str, tuple[Any, Callable[[], None], int, str]] = {
    "an error": (None, fail_in_decode, 4, r"error: rank 1 failed: KeyError: 'no such thing'"),
    "a killed rank": ("rank", sleep_in_decode, 4, r"error: rank 1 was killed by SIGKILL .*"),
    "Ctrl-C": (interrupt, sleep_in_decode, 130, "interrupted: nothing was written"),
    "SIGTERM": (terminate, sleep_in_decode, 143, "terminated: nothing was written"),
}


@pytest.mark.parametrize("name", [*[*ENDS][:3], pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_every_end_is_said_once_leaves_no_process_and_writes_nothing(name: str, tmp_path: Path) -> None:
    act, change, exit_code, message = ENDS[name]
    line = f"measure tiny/maverick --ep 2 {FAST} --progress --out report"
    with started(tmp_path, line, change) as command:
        deadline = time.monotonic() + 60
        while "measuring decode" not in command.err.read_text() and command.process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if act == "rank":
            os.kill(command.pids[1], signal.SIGKILL)
        elif act is not None:
            act(command)
        code, messages = command.ended(SECONDS)
    assert code == exit_code
    messages = [text for text in messages if not text.startswith("measuring ")]
    assert len(messages) == 1, messages
    assert re.fullmatch(message, messages[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out"]


def test_measure_is_a_function_of_the_package_that_takes_a_layout() -> None:
    import l4spec

    messages: list[str] = []
    report = l4spec.measure("tiny/maverick", prefill=20, decode=2, layout=Layout(tp=2), progress=messages.append)
    assert report.agrees
    assert report.layout == Layout(tp=2)
    assert "measuring prefill ..." in messages
    with pytest.raises(l4spec.UserError, match="tp=3 does not divide 10"):
        l4spec.measure("tiny/maverick", layout=Layout(tp=3))
