"""`l4spec.measure` of a layout: its ranks started on this machine, and each held against the plan."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.layers.declaration import Work
from l4spec.runtime.measure.job import MeasureJob
from l4spec.runtime.measure.results import RankMeasurement
from l4spec.runtime.parallel.run.memory_check import require_room
from l4spec.sharding.layout import Layout, place_of
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

WRONG_INPUT = 2


class RanksEnded(Exception):
    """What has ended the ranks before they were done, in one message, and the exit code that says so."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def measure_ranks(
    job: MeasureJob, *, time_limit: float | None = None, tell: Callable[[str], None] | None = None
) -> MeasureReport:
    """Start the ranks of a job's layout, let them measure, and hold what they found against the plan.

    After `time_limit` seconds all are ended, and stages that some had not finished stay empty. `tell` hears which
    processes they are. To be called in a process that has not computed with torch yet, since ranks are forked from it.
    Raises UserError for what cannot be run, before any process starts, and RanksEnded when a rank fails.
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
        if tell is not None and len(messages) == 1:
            tell(line)

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


def measure_in_new_process(
    spec: ModelSpec, layout: Layout, options: Mapping[str, Any], tell: Callable[[str], None] | None
) -> MeasureReport:
    """`l4spec measure` of a spec in an interpreter of its own, whose ranks share nothing with this one.

    `options` are those of the command by their names. Raises UserError for what it refuses, RanksEnded when a rank
    fails. `tell` hears its progress.
    """
    from l4spec.runtime.checkpoints.save import spec_text

    if reason := illegal_reason(build_graph(resolve(spec)), layout):
        raise UserError([Problem(f"{layout}: {reason}")])
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / "spec.yaml", Path(folder) / "report.json"
        path.write_text(spec_text(spec), encoding="utf-8")
        line = [sys.executable, "-m", "l4spec", "measure", str(path), "--format=json", f"--out={out}"]
        line.append("--progress" if tell else "--no-progress")
        line += [f"--{axis}={degree}" for axis, degree in layout.model_dump().items()]
        code, output = _run([*line, *_as_options(options)], tell or (lambda stage: None))
        if out.exists():
            return MeasureReport.model_validate_json(out.read_text(encoding="utf-8"))
    errors = [text.removeprefix("error: ") for text in output if text.startswith("error: ")] or output[-1:]
    if code == WRONG_INPUT:
        raise UserError([Problem(error) for error in errors])
    raise RanksEnded("\n".join(errors), code)


def _as_options(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if value is True:
            yield f"--{name}"
        elif value is not None and value is not False:
            yield f"--{name}={value}"


def _run(line: Sequence[str], tell: Callable[[str], None]) -> tuple[int, list[str]]:
    """The exit code of a command, and what it has said of its progress and errors."""
    output: list[str] = []
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8") as run:
        assert run.stderr is not None
        for text in run.stderr:
            output.append(text.rstrip())
            tell(output[-1])
    return run.returncode, output
