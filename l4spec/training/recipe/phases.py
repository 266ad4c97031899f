"""Batch and objective of each kind of phase, as functions of the step alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from l4spec.runtime.parallel.loss import IGNORED, Objective
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.mtp import MTPLoss
from l4spec.spec.recipe import DpoPhase, Phase, RlPhase
from l4spec.spec.recipe.phase import DistillPhase, PretrainPhase, SftPhase
from l4spec.training.data.mixture import Mixture, weights_of
from l4spec.training.loop import TrainBatch, reshard
from l4spec.training.losses.distillation import DistillObjective
from l4spec.training.losses.policy import (
    PolicyObjective,
    advantages,
    informative,
    pass_at_k,
    token_weights,
)
from l4spec.training.losses.preference import DpoObjective
from l4spec.training.recipe.actor_process import DrawnAnswers, PromptGroups
from l4spec.training.recipe.actors import Actors
from l4spec.training.recipe.answers import answer_rows, prompts, require_pairs, right_answer, wrong_answer
from l4spec.training.recipe.evaluation import AnswerSampling, Asked, answer, is_right, log_probs_of
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.teacher_cache import TeacherCache

CANDIDATES = 512
"""Dialogues that a judge looks at where easy ones are dropped."""
Loader = Callable[[], RankModel]


@dataclass(frozen=True)
class PhaseContext:
    """Inputs of a phase: the model, the data, and `entering`, which loads the model as it was at the phase's start."""

    phase: Phase
    model: RankModel
    mixture: Mixture
    seed: int
    entering: Loader
    teacher: Loader
    job: RecipeJob | None = None

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the phase's sources."""
        return weights_of(self.mixture.spec, self.phase.mixture)

    @cached_property
    def reference(self) -> RankModel:
        """The model that entered the phase, loaded once."""
        return self.entering()


@dataclass(frozen=True)
class Prepared:
    """A phase as the loop runs it; `notes` are for the table."""

    batch_of: Callable[[int], TrainBatch]
    objective: Objective | None = None
    notes: Mapping[str, float] | None = None
    mtp: MTPLoss | None = None
    """Loss that steps add for modules of multi-token prediction."""
    close: Callable[[], None] | None = None
    """Function to call at the end of the phase."""


def prepare(context: PhaseContext) -> Prepared:
    """The phase's batches and objective. Raises UserError for data that it cannot use."""
    match context.phase:
        case PretrainPhase() as phase:
            return _pretrain(context, phase)
        case DistillPhase() as phase:
            return _distill(context, phase)
        case SftPhase() as phase:
            return _sft(context, phase)
        case RlPhase() as phase:
            return _rl(context, phase)
        case DpoPhase() as phase:
            return _dpo(context, phase)


def _pretrain(context: PhaseContext, phase: PretrainPhase) -> Prepared:
    packed, spec = _packed(context), phase.mtp
    if spec is None:
        return Prepared(packed)
    mtp = MTPLoss(spec.weight)

    def batch(step: int) -> TrainBatch:
        mtp.weight = spec.weight_at(step, phase.num_steps)
        return replace(packed(step), metrics={"mtp_weight": mtp.weight})

    return Prepared(batch, mtp=mtp)


def _packed(context: PhaseContext, *, answers_only: bool = False) -> Callable[[int], TrainBatch]:
    phase = context.phase

    def batch(step: int) -> TrainBatch:
        return context.mixture.batch(
            step, phase.batch, phase.context, context.weights, answers_only=answers_only, stream=phase.name
        )

    return batch


def _distill(context: PhaseContext, phase: DistillPhase) -> Prepared:
    teacher, packed = context.teacher(), _packed(context)
    folder = None if context.job is None else context.job.teacher_cache
    cache = None if folder is None else TeacherCache.of(folder, teacher, phase)
    objective = DistillObjective(
        phase.divergence, phase.soft_weight, 1.0, phase.temperature, phase.top_k, phase.weighting == "dynamic"
    )

    def batch(step: int) -> TrainBatch:
        made = packed(step)
        objective.num_labels = float((made.labels != IGNORED).sum())
        if phase.weighting == "linear":
            objective.soft_weight = phase.soft_weight * (1 - step / max(phase.num_steps - 1, 1))
        metrics = {"soft_weight": objective.soft_weight}
        if cache is None:
            logits = _logits_of(teacher, made)
        else:
            logits, was_there = cache.logits(made, lambda: _logits_of(teacher, made))
            metrics["teacher_cached"] = float(was_there)
        return replace(made, extras={"teacher": logits}, metrics=metrics)

    return Prepared(batch, objective)


@torch.no_grad()
def _logits_of(teacher: RankModel, batch: TrainBatch) -> Tensor:
    """The teacher's logits [sequences, tokens, vocab]."""
    given: dict[str, Any] = {name: x.to(teacher.device) for name, x in batch.inputs.items()}
    logits: Tensor = teacher.eval()(batch.input_ids.to(teacher.device), **given)
    return logits


def _sft(context: PhaseContext, phase: SftPhase) -> Prepared:
    """Packed dialogues; with `drop_easy`, rows of the hardest of a pool, one dialogue each."""
    if not phase.drop_easy:
        return Prepared(_packed(context, answers_only=True))
    pool = prompts(context.mixture, context.weights, CANDIDATES, phase.name, is_held_out=False)
    answers = [right_answer(context.mixture, one) for one in pool]
    width = max(len(one.prompt) + len(ids) for one, ids in zip(pool, answers, strict=True))
    rows = answer_rows(pool, answers, width, context.mixture.codec.end_id)
    lengths = (rows.labels != IGNORED).sum(dim=1)
    losses = -log_probs_of(context.reference, rows).cpu().sum(dim=1) / lengths
    kept = losses.argsort(descending=True, stable=True)[: max(1, round(CANDIDATES * (1 - phase.drop_easy)))]

    def batch(step: int) -> TrainBatch:
        draw = torch.Generator().manual_seed(context.seed * 1_000_003 + step)
        chosen = kept[torch.randint(len(kept), (phase.batch,), generator=draw)]
        mask = {name: given[chosen] for name, given in rows.inputs.items()}
        return TrainBatch(rows.input_ids[chosen], rows.labels[chosen], mask)

    return Prepared(batch, notes={"dropped": 1 - len(kept) / CANDIDATES, "easiest_kept": float(losses[kept].min())})


def _rl(context: PhaseContext, phase: RlPhase) -> Prepared:
    """Answers are drawn from the model as it is when the batch is requested, or come from actors."""
    codec = context.mixture.codec
    by_answer = phase.algorithm == "reinforce"
    objective = PolicyObjective(phase.clip_low, phase.clip_high, phase.kl_weight, by_answer)
    kept: dict[int, TrainBatch] = {}
    actors = None
    if phase.rollouts is not None:
        assert context.job is not None, "a run has a job"
        groups = PromptGroups(phase, context.mixture, context.weights)
        actors = Actors(context.job, groups, context.model)

    def rollout(number: int) -> TrainBatch:
        drawn = _drawn_here(context, phase, number) if actors is None else actors.batch(number)
        rewards = torch.tensor(
            [float(is_right(one, given, codec)) for one, given in zip(drawn.asked, drawn.ids, strict=True)]
        ).view(-1, phase.group)
        rows = drawn.rows
        extras = {
            "advantages": advantages(rewards, phase.algorithm).flatten(),
            "weights": token_weights(rows.labels, phase.algorithm, phase.max_answer),
            **rows.extras,
        }
        if phase.kl_weight:
            extras["reference"] = _reference_log_probs(context, rows)
        return replace(rows, extras=extras, metrics={**_reward_metrics(rewards), **rows.metrics})

    def batch(step: int) -> TrainBatch:
        number = step // phase.iterations
        if number not in kept:
            kept.clear()
            kept[number] = rollout(number)
            context.model.train()
        return kept[number]

    return Prepared(batch, objective, close=None if actors is None else actors.close)


def _reference_log_probs(context: PhaseContext, rows: TrainBatch) -> Tensor:
    """log p of each label [sequences, tokens] by the model that entered the phase, whose weights are shared again."""
    log_probs = log_probs_of(context.reference, rows).cpu()
    reshard(context.reference)
    return log_probs


def _drawn_here(context: PhaseContext, phase: RlPhase, number: int) -> DrawnAnswers:
    """Answers of a step by the model itself, and their log probabilities under it."""
    codec, count = context.mixture.codec, phase.batch // phase.group
    asked = prompts(context.mixture, context.weights, count, f"{phase.name} {number}", is_held_out=False)
    asked = [one for one in asked for _ in range(phase.group)]
    sampling = AnswerSampling(phase.max_answer, phase.temperature, context.seed * 1_000_003 + number)
    ids = answer(context.model, asked, codec, sampling)
    width = max(len(one.prompt) for one in asked) + phase.max_answer
    rows = answer_rows(asked, ids, width, codec.end_id)
    return DrawnAnswers(asked, ids, replace(rows, extras={"old": log_probs_of(context.model, rows).cpu()}))


def _reward_metrics(rewards: Tensor) -> dict[str, float]:
    groups = rewards.sum(dim=1).int().tolist()
    size = rewards.shape[1]
    return {
        "reward": float(rewards.mean()),
        f"pass_at_{size}": sum(pass_at_k(size, right, size) for right in groups) / len(groups),
        "informative": float(informative(rewards).float().mean()),
    }


def _dpo(context: PhaseContext, phase: DpoPhase) -> Prepared:
    codec, pairs = context.mixture.codec, phase.batch // 2
    require_pairs(context.mixture, context.weights)

    def batch(step: int) -> TrainBatch:
        asked = prompts(context.mixture, context.weights, pairs, f"{phase.name} {step}", is_held_out=False)
        doubled: list[Asked] = [one for one in asked for _ in range(2)]
        answers = [
            right_answer(context.mixture, one) if row % 2 == 0 else wrong_answer(context.mixture, one, f"{step} {row}")
            for row, one in enumerate(doubled)
        ]
        width = max(len(one.prompt) + len(ids) for one, ids in zip(doubled, answers, strict=True))
        rows = answer_rows(doubled, answers, width, codec.end_id)
        reference = _reference_log_probs(context, rows).sum(dim=1)
        return replace(rows, extras={"reference": reference})

    return Prepared(batch, DpoObjective(phase.beta, pairs))
