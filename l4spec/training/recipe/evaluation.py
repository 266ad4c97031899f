"""Evaluation between phases: held-out loss, bits per byte, experts in use, share of right answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.layers.common.parallel import gather, sum_over
from l4spec.runtime.parallel.loss import IGNORED, Scored
from l4spec.runtime.parallel.model import RankModel
from l4spec.training.data.tokens import Codec
from l4spec.training.loop import TrainBatch, own_part
from l4spec.training.routing import LayerLoad, RoutingLog


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of held-out text: mean loss in nats a token, bits a byte, and load of experts, tokens choosing."""

    loss: float
    bits_per_byte: float
    routing: Mapping[str, LayerLoad] = field(default_factory=dict)


@torch.no_grad()
def evaluate(model: RankModel, batch: TrainBatch, bytes_per_token: float) -> Evaluation:
    """The same on every rank; all must call it. Bits per byte are nats / ln 2 x tokens / bytes."""
    model.eval()
    log = RoutingLog(model)
    own = own_part(model, batch).to(model.device)
    inputs: dict[str, Any] = dict(own.inputs)
    total = model.loss(own.input_ids, own.labels, count=torch.ones((), device=model.device), **inputs)
    count = (own.labels != IGNORED).sum()
    loss = float(sum_over(total, model.mesh.data)) / max(int(sum_over(count, model.mesh.data)), 1)
    routing = log.finish()
    model.record = None
    return Evaluation(loss, loss / math.log(2) / bytes_per_token, routing)


@torch.no_grad()
def log_probs_of(model: RankModel, batch: TrainBatch) -> Tensor:
    """log p of each label [sequences, tokens], 0 where it counts not; of all sequences, on every rank."""
    model.eval()
    scores: list[Tensor] = []

    def keep(scored: Scored) -> Tensor:
        scores.append(scored.log_probs())
        return scored.local_logits.new_zeros(())

    own = own_part(model, batch).to(model.device)
    inputs: dict[str, Any] = dict(own.inputs)
    model.loss(own.input_ids, own.labels, objective=keep, **inputs)
    return gather(scores[0], model.mesh.data).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and the answer that is right; `rejected` is one that is not, where the data has it."""

    prompt: tuple[int, ...]
    answer: str
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerSampling:
    """Sampling of answers; greedy at temperature 0."""

    max_answer: int
    temperature: float = 0.0
    seed: int = 0


def answer(model: RankModel, asked: Sequence[Asked], codec: Codec, sampling: AnswerSampling) -> list[list[int]]:
    """Token ids that follow each prompt, the end of the document included where it came; the same on every rank.

    Prompts are padded to a number that data-parallel ranks divide.
    """
    model.eval()
    data = model.mesh.data.size
    prompts = [list(one.prompt) for one in asked]
    padded = prompts + [prompts[-1]] * (-len(prompts) % data)
    try:
        rows = model.generate(
            padded,
            max_new_tokens=sampling.max_answer,
            stop_ids=(codec.end_id,),
            temperature=sampling.temperature,
            seed=sampling.seed,
            pad_id=codec.end_id,
        )
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise UserError("logits are not finite while answers are drawn", hint="a lower learning rate") from None
    assert isinstance(rows, list)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=False)]


def is_right(asked: Asked, answers: Sequence[int], codec: Codec) -> bool:
    """True if the answer is correct and ends there."""
    return bool(answers) and answers[-1] == codec.end_id and codec.decode(answers[:-1]) == asked.answer


def share_right(model: RankModel, asked: Sequence[Asked], codec: Codec, max_answer: int) -> float:
    """The share of prompts that the likeliest answer is right for."""
    answers = answer(model, asked, codec, AnswerSampling(max_answer))
    return sum(is_right(one, given, codec) for one, given in zip(asked, answers, strict=True)) / len(asked)
