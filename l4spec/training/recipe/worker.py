"""Worker of `l4spec train`: every rank runs all phases, saves, evaluates and logs."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

import torch

from l4spec.errors import UserError
from l4spec.graph.build import build_graph
from l4spec.graph.trainable import trained_names
from l4spec.graph.with_modules import with_modules
from l4spec.runtime.build import build
from l4spec.runtime.initialize import STANDARD_DEVIATION
from l4spec.runtime.parallel.checkpoints import load_sharded
from l4spec.runtime.parallel.checkpoints.rank_coordination import is_first
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.run.task import Log, Store
from l4spec.runtime.parallel.training import local_of
from l4spec.spec.model import ModelSpec
from l4spec.spec.recipe import Phase, RlPhase
from l4spec.spec.recipe.load import scaled, small, starts_of
from l4spec.spec.recipe.precision import written
from l4spec.spec.resolve import resolve
from l4spec.training.checkpoints import folder_of, latest_step, load_step, save_step
from l4spec.training.data.mixture import Mixture
from l4spec.training.fp8.watch import OverflowDetector
from l4spec.training.loop import LoopSettings, own_part, reshard, train_steps
from l4spec.training.nonfinite import where_not_finite
from l4spec.training.optimizer import make_optimizer
from l4spec.training.parametrization import RunGrowth, TensorFactors, tensor_factors
from l4spec.training.recipe.answers import prompts
from l4spec.training.recipe.evaluation import DepthScore, Evaluation, evaluate, share_right
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.lengths import LengthScore, scores_by_length
from l4spec.training.recipe.metrics import MetricsFile, PhaseResult, Recent, RoutingSummary, StepProgress
from l4spec.training.recipe.phases import PhaseContext, Prepared, prepare
from l4spec.training.routing import CollapseDetector
from l4spec.units import ceil_div

RESULT = "result.json"
_TEACHERS: dict[str, RankModel] = {}
"""The teacher of the last run in this process: variants that are trained in turn share it."""
NUM_LINES = 10
"""Lines a phase that tell how far it is."""
NUM_ASKED = 64
"""Held-out prompts that answers are checked for."""


PhaseProgress: TypeAlias = Callable[[StepProgress], None]
"""Called after each step of a phase."""


def work(job: RecipeJob, log: Log, store: Store, progress: PhaseProgress | None = None) -> None:
    """One rank's part; `log` prints a line on rank 0 and nothing elsewhere. The store gets the results.

    `progress` is called after each step.
    """
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
        log(f"threads {job.num_threads} a rank, of {os.cpu_count()} cores (--threads changes it)")
    for phase in job.phases:
        if phase.fp8 is not None:
            log(f"{phase.name}: matmuls in {written(phase.precision)}, rounded here and summed in fp32")
    results = RecipeRun(job, log, progress).run()
    if is_first():
        store.set(RESULT, json.dumps([asdict(result) for result in results]))


class RecipeRun:
    """A run of all phases of one variant, on this rank."""

    def __init__(self, job: RecipeJob, log: Log, progress: PhaseProgress | None = None) -> None:
        self.job, self.log, self.progress = job, log, progress
        self.recipe = job.loaded.recipe
        self.mixture = Mixture(self.recipe.data, job.seed, job.loaded.folder, job.model_spec.vision)
        self.starts = starts_of(job.phases)
        self.factors = self._factors()
        self.checkpoint = latest_step(job.out) if job.resume else None
        self.model = self._begun() if self.checkpoint is None else self._fresh(None, train=True)
        self.model.checkpointing = job.checkpointing
        self.done = 0 if self.checkpoint is None else int(self.checkpoint.name.rpartition("-")[2])
        self.metrics = MetricsFile(job.out, self.done, events=job.tensorboard)
        self.detector = CollapseDetector()

    def run(self) -> list[PhaseResult]:
        """All phases that are not done."""
        try:
            return self._phases()
        finally:
            self.metrics.close()

    def _phases(self) -> list[PhaseResult]:
        results = []
        for phase in self.job.phases:
            end = self.starts[phase.name] + phase.num_steps
            if self.done < end:
                results.append(self._phase(phase))
        if not results and self.checkpoint is not None:
            self.log(f"nothing to do: {self.checkpoint} is the end of the recipe")
        return results

    def _phase(self, phase: Phase) -> PhaseResult:
        start, began = self.starts[phase.name], time.perf_counter()
        reshard(self.model)
        self.freeze(phase)
        optimizer = make_optimizer(self.model, phase.optimizer, self.factors, self.growth(phase).rate)
        self._load(optimizer if self.done > start else None)
        if self.job.out is not None and self.done == start > 0:
            save_step(self.job.out, start, self.model, optimizer, self.job.continued())
        prepared = prepare(self.context(phase))
        recent = Recent()
        try:
            self._steps(phase, prepared, optimizer, recent)
        finally:
            if prepared.close is not None:
                prepared.close()
        return self._result(phase, prepared, recent, time.perf_counter() - began)

    def _steps(self, phase: Phase, prepared: Prepared, optimizer: torch.optim.Optimizer, recent: Recent) -> None:
        """The steps of a phase that are not done, logged and saved."""
        start, every = self.starts[phase.name], max(1, phase.num_steps // NUM_LINES)
        overflows = OverflowDetector()
        settings = LoopSettings(phase.num_steps, phase.schedule, phase.optimizer.clip, None, fp8=phase.fp8)
        steps = train_steps(
            self.model,
            optimizer,
            prepared.batch_of,
            settings,
            start=self.done - start,
            objective=prepared.objective,
            mtp=prepared.mtp,
        )
        for done in steps:
            self.done = start + done.step
            recent.add(done)
            self.metrics.step(self.done, phase.name, done)
            if self.progress is not None:
                self.progress(StepProgress(phase.name, done.step, done.loss, done.tokens_per_second))
            for warning in (*self.detector.warnings(self.done, done.routing), *overflows.warnings(self.done, done.fp8)):
                self.metrics.write(self.done, phase=phase.name, event="warning", message=warning)
                self.log(f"warning: {warning}")
            if done.step % every == 0 or done.step == phase.num_steps:
                extra = "".join(f"  {name} {value:.3f}" for name, value in done.extra.items())
                self.log(
                    f"{phase.name}  step {done.step}/{phase.num_steps}  loss {done.loss:.4f}{extra}"
                    f"  {done.tokens_per_second:,.0f} tokens/s"
                )
            self._save(phase, done.step, optimizer)

    def _save(self, phase: Phase, step: int, optimizer: torch.optim.Optimizer) -> None:
        every = self.job.save_every
        if self.job.out is not None and (step == phase.num_steps or (every and step % every == 0)):
            save_step(self.job.out, self.done, self.model, optimizer, self.job.continued())

    def _load(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Load the checkpoint of an earlier run, once; in the middle of a phase, with the optimizer's state."""
        if self.checkpoint is not None:
            load_step(self.checkpoint, self.model, optimizer, self.job.continued())
            self.log(f"resumed from {self.checkpoint} after step {self.done}")
            self.checkpoint = None

    def context(self, phase: Phase) -> PhaseContext:
        """The inputs of a phase."""

        def entering() -> RankModel:
            return self._entered(self.starts[phase.name])

        def teacher() -> RankModel:
            return self._teacher(phase)

        return PhaseContext(phase, self.model, self.mixture, self.job.seed, entering, teacher, self.job)

    def _fresh(self, seed: int | None, *, train: bool = False) -> RankModel:
        empty = build(self.job.graph, "meta", self.job.number_format)
        model = distribute(
            empty,
            self.job.layout,
            device=_own_device(self.job.device),
            seed=seed,
            train=train,
            sequence_parallel=self.job.sequence_parallel,
        )
        if seed is not None:
            rescale(model, self.recipe.initial_deviation, self.factors)
        model.image_token_id = self.mixture.image_token_id
        return model

    def _begun(self) -> RankModel:
        """The model before the first phase: with the weights that the run was given, or random ones."""
        model = self._fresh(self.job.seed, train=True)
        if self.job.weights is not None:
            load_sharded(model, self.job.weights)
        return model

    def _factors(self) -> Mapping[str, TensorFactors]:
        """Of every tensor, by the recipe's parametrization."""
        rule = self.recipe.parametrization
        changes = (*self.recipe.set, *rule.base.set)
        base = scaled(self.job.loaded.spec_of(self.recipe.model, changes), self.job.scale, self.job.layers)
        graph = build_graph(resolve(base))
        return tensor_factors(self.job.graph, with_modules(graph) if self.job.trains_modules else graph, rule.kind)

    def growth(self, phase: Phase) -> RunGrowth:
        """Growth of batch and tokens relative to the base's."""
        base = self.recipe.parametrization.base
        tokens = 1.0 if base.tokens is None else phase.tokens / base.tokens
        return RunGrowth(1.0 if base.batch is None else phase.batch / base.batch, tokens)

    @torch.no_grad()
    def _entered(self, start: int) -> RankModel:
        """The model as it entered a phase: the current one if the phase just began, else the saved one."""
        model = self._begun()
        reshard(self.model)
        if self.done == start:
            for name, tensor in model.state_dict(keep_vars=True).items():
                local_of(tensor).copy_(local_of(self.model.get_tensor(name)))
        elif start > 0:
            assert self.job.out is not None, "a resumed run has a folder"
            load_step(folder_of(self.job.out, start), model, None, self.job.continued())
        return model.eval()

    def _teacher(self, phase: Phase) -> RankModel:
        """The teacher of a phase, trained first by the phases that it names; the same for the same seed."""
        assert phase.kind == "distill", "only these have teachers"
        teacher, job = self.recipe.teachers[phase.teacher], self.job
        spec = job.loaded.spec_of(teacher.model, teacher.set, ("teachers", phase.teacher, "model"))
        key = f"{teacher!r} {spec!r} {self.recipe.data!r} {job.scale} {job.layout} {job.seed} {job.number_format}"
        if key not in _TEACHERS:
            _TEACHERS.clear()
            _TEACHERS[key] = self._trained_teacher(phase.teacher, scaled(spec, job.scale, None))
        return _TEACHERS[key]

    def _trained_teacher(self, name: str, spec: ModelSpec) -> RankModel:
        job = self.job
        empty = build(build_graph(resolve(spec)), "meta", job.number_format)
        model = distribute(empty, job.layout, device=_own_device(job.device), seed=job.seed + 1, train=True)
        rescale(model, self.recipe.initial_deviation)
        for phase in self.recipe.teachers[name].phases:
            own = phase if job.scale is None else small(phase, job.model_spec)
            optimizer = make_optimizer(model, own.optimizer)
            context = PhaseContext(own, model, self.mixture, job.seed + 1, lambda: model, lambda: model)
            settings = LoopSettings(own.num_steps, own.schedule, own.optimizer.clip, None, fp8=own.fp8)
            loss = [done.loss for done in train_steps(model, optimizer, prepare(context).batch_of, settings)][-1]
            self.log(f"teacher {name}: {own.name}, {own.num_steps} steps, loss {loss:.4f}")
        model.record = None
        return model.eval()

    def freeze(self, phase: Phase) -> None:
        """Let the tensors that a phase trains have gradients, and no others."""
        trained = trained_names(self.model.graph, phase.trainable)
        idle = tuple(f"{node.id}." for node in self.model.module_nodes if phase.modules is None)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained and not name.startswith(idle))

    def _result(self, phase: Phase, prepared: Prepared, recent: Recent, seconds: float) -> PhaseResult:
        evaluation, right = self._evaluated(phase)
        self.metrics.evaluation(self.done, phase.name, evaluation, right)
        lengths = self._by_length(phase)
        routing = RoutingSummary.worst_of(recent.summed_loads())
        return PhaseResult(
            phase.name,
            phase.kind,
            phase.num_steps,
            phase.num_steps * phase.batch * phase.context,
            seconds,
            recent.loss,
            evaluation.loss,
            evaluation.bits_per_byte,
            routing,
            RoutingSummary.worst_of(evaluation.routing),
            right,
            {**(prepared.notes or {}), **recent.means()},
            max(one.context for one in self.job.phases if self.starts[one.name] <= self.starts[phase.name]),
            lengths,
            evaluation.depths,
        )

    def _by_length(self, phase: Phase) -> Sequence[LengthScore]:
        if self.recipe.lengths is None:
            return ()
        scores = scores_by_length(self.model, self.mixture, self.recipe.lengths, self.job.model_spec.text.max_seq_len)
        self.metrics.lengths(self.done, phase.name, scores)
        self.log(f"{phase.name}  right by length: {'  '.join(f'{one.tokens:,} {one.right:.0%}' for one in scores)}")
        return scores

    def _evaluated(self, phase: Phase) -> tuple[Evaluation, float | None]:
        context = self.context(phase)
        data = self.model.mesh.data.size
        count = ceil_div(self.recipe.data.evaluate_sequences, data) * data
        tokens = min(phase.context, self.job.model_spec.text.max_seq_len)
        batch, bytes_per_token = self.mixture.held_out(count, tokens, context.weights)
        evaluation = evaluate(self.model, batch, bytes_per_token, modules=phase.modules is not None)
        if not math.isfinite(evaluation.loss):
            own = own_part(self.model, batch.to(self.model.device))
            where = where_not_finite(self.model, own.input_ids, own.inputs, evaluation.loss)
            raise UserError(f"step {self.done}: {where}")
        if phase.kind not in ("sft", "rl", "dpo"):
            return evaluation, None
        asked = prompts(self.mixture, context.weights, NUM_ASKED, "held out", is_held_out=True)
        most = phase.max_answer if isinstance(phase, RlPhase) else max(len(one.answer) for one in asked) + 2
        return evaluation, share_right(self.model, asked, self.mixture.codec, most)


@torch.no_grad()
def rescale(model: RankModel, deviation: float, factors: Mapping[str, TensorFactors] | None = None) -> None:
    """Let random weights have another standard deviation than the one they were drawn with, times their factor."""
    kept = {f"{node.id}.{p.name}" for node, p in model.graph.parameters() if p.role in ("norm", "bias")}
    for name, parameter in model.named_parameters():
        if name not in kept:
            own = TensorFactors() if factors is None else factors[name]
            local_of(parameter).mul_(own.deviation * deviation / STANDARD_DEVIATION)


def _own_device(device: str) -> torch.device:
    if device != "cuda":
        return torch.device(device)
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def results_of(texts: Sequence[str]) -> list[PhaseResult]:
    """Parse the results that ranks wrote to the store."""
    results = []
    for row in (row for text in texts for row in json.loads(text)):
        for name in ("routing", "evaluated"):
            row[name] = None if row[name] is None else RoutingSummary(**row[name])
        row["lengths"] = tuple(LengthScore(**score) for score in row["lengths"])
        row["depths"] = tuple(DepthScore(**score) for score in row["depths"])
        results.append(PhaseResult(**row))
    return results


__all__ = ["RESULT", "RecipeRun", "results_of", "work"]
