"""`l4spec.measure` of a layout: its ranks started on this machine, and each compared with the plan."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.layers.declaration import Work
from l4spec.progress import StageProgress
from l4spec.runtime.measure.job import MeasureJob
from l4spec.runtime.measure.results import RankMeasurement
from l4spec.runtime.parallel.run.memory_check import require_room
from l4spec.sharding.layout import place_of
from l4spec.sharding.rules import illegal_reason
from l4spec.sharding.sequence import longest_run
from l4spec.spec.model import ModelSpec
from l4spec.spec.resolve import resolve
from l4spec.verification.measure import ITEM_BYTES, MeasureReport, cache_lengths
from l4spec.verification.measure_ranks import compare_ranks
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.module.activation_ledger import activation_bytes
from planners.module.runtime_rank import cache_on_rank, stage_on_rank


class RanksEnded(Exception):
    """Raised if the ranks ended before they were done, with one message and its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def measure_ranks(
    job: MeasureJob, *, time_limit: float | None = None, progress: StageProgress | None = None
) -> MeasureReport:
    """Start the ranks of a job's layout, let them measure, and compare their measurements with the plan.

    After `time_limit` seconds all are ended, and stages that some had not finished stay empty. `progress` is called
    with the ranks' process ids and each stage. To be called in a process that has not computed with torch yet, since
    ranks are forked from it. Raises UserError for what cannot be run, before any process starts, and RanksEnded when a
    rank fails.
    """
    job = replace(job, cache_lengths=cache_lengths(job.graph, job.prefill + job.decode))
    _require_sizes(job)
    job.check()
    require_room(job, sum(_beside_weights(job)))
    from l4spec.runtime.measure.rank import read_measurements
    from l4spec.runtime.parallel.run.launch import launch

    messages: list[str] = []
    measured: list[RankMeasurement] = []

    def hear(line: str) -> None:
        messages.append(line)
        if progress is not None and len(messages) == 1:
            progress(line)

    world = job.layout.num_devices
    code = launch(job, hear, time_limit=time_limit, read=lambda store: measured.extend(read_measurements(store, world)))
    if code:
        raise RanksEnded(messages[-1], code)
    return compare_ranks(job, measured)


def _require_sizes(job: MeasureJob) -> None:
    problems = []
    for name, value, least in (("--prefill", job.prefill, 1), ("--decode", job.decode, 0), ("--batch", job.batch, 1)):
        if value < least:
            problems.append(Problem(f"expected at least {least}, found {value}", path=name))
    if job.number_format not in ITEM_BYTES:
        problems.append(Problem(f"expected one of {', '.join(ITEM_BYTES)}, found {job.number_format}", path="--dtype"))
    if problems:
        raise UserError(problems)


def _beside_weights(job: MeasureJob) -> Iterator[int]:
    """For each rank, bytes besides weights and gradients: two caches, and at most the activations of a whole model."""
    layout, graph, item = job.layout, job.graph, ITEM_BYTES[job.number_format]
    tokens = longest_run(graph, job.prefill, layout.cp)
    activations = activation_bytes(graph, Work(job.sequences, tokens, num_logits=1), item_bytes=item)
    scheme = scheme_of(quantization(job.number_format))
    for rank in range(layout.num_devices):
        stage = stage_on_rank(graph, scheme, layout, place_of(layout, rank))
        yield 2 * cache_on_rank(graph, stage, layout, job.sequences, tokens + job.decode, item) + activations


def require_plain(device: str | None, quantization_name: str | None, tiles: int) -> None:
    """Raise UserError for options that cannot be combined with ranks."""
    problems = []
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        problems.append(Problem("measure starts the ranks of its degrees itself", hint="leave torchrun out"))
    if device not in (None, "cpu"):
        problems.append(Problem("ranks are measured on the cpu", "--device", hint="leave it, or the degrees"))
    if quantization_name is not None:
        problems.append(Problem("packed weights are not cut into shards", "--quantization", hint="leave the degrees"))
    if tiles:
        problems.append(Problem("image tiles are measured in one process", "--tiles", hint="leave the degrees"))
    if problems:
        raise UserError(problems)


@dataclass(frozen=True, slots=True)
class RanksOutcome:
    """Outcome of a measurement in another process: a report, errors of the user, or the ranks' premature end."""

    report: MeasureReport | None = None
    problems: tuple[Problem, ...] = ()
    ended: tuple[str, int] | None = None


def outcome_of(job: MeasureJob, time_limit: float | None, progress: StageProgress | None) -> RanksOutcome:
    """`measure_ranks` with its result or its errors in one value."""
    try:
        return RanksOutcome(report=measure_ranks(job, time_limit=time_limit, progress=progress))
    except UserError as error:
        return RanksOutcome(problems=error.problems)
    except RanksEnded as ended:
        return RanksOutcome(ended=(str(ended), ended.code))


def measure_in_new_process(
    spec: ModelSpec, job: MeasureJob, time_limit: float | None, progress: StageProgress | None
) -> MeasureReport:
    """`measure_ranks` of a job for a spec, in an interpreter of its own, whose ranks share nothing with this one.

    Job and outcome are handed over in files (`l4spec.verification.measure_process`); `job.spec` is set here. Raises
    UserError for what is refused, RanksEnded when a rank fails. `progress` is called with each stage.
    """
    from l4spec.runtime.checkpoints.save import spec_text

    if reason := illegal_reason(build_graph(resolve(spec)), job.layout):
        raise UserError([Problem(f"{job.layout}: {reason}")])
    with TemporaryDirectory() as folder:
        path, request, answer = (Path(folder) / name for name in ("spec.yaml", "job", "outcome"))
        path.write_text(spec_text(spec), encoding="utf-8")
        request.write_bytes(pickle.dumps((replace(job, spec=str(path)), time_limit)))
        line = [sys.executable, "-m", "l4spec.verification.measure_process", str(request), str(answer)]
        code, output = _run(line, progress or (lambda stage: None))
        silent = RanksOutcome(ended=("\n".join(output[-1:]), code))
        outcome: RanksOutcome = pickle.loads(answer.read_bytes()) if answer.exists() else silent
    if outcome.problems:
        raise UserError(outcome.problems)
    if outcome.report is None:
        raise RanksEnded(*(outcome.ended or ("the process that measures ended", code)))
    return outcome.report


def _run(line: Sequence[str], progress: StageProgress) -> tuple[int, list[str]]:
    """The exit code of a process, and the lines of its progress."""
    output: list[str] = []
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8") as run:
        assert run.stderr is not None
        for text in run.stderr:
            output.append(text.rstrip())
            progress(output[-1])
    return run.returncode, output
