"""Evaluation between phases: held-out loss, bits per byte, experts in use, share of right answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.layers.common.parallel import Axis, gather, sum_over
from l4spec.runtime.parallel.loss import IGNORED, Scored, vocab_parallel_cross_entropy
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.mtp import further_targets
from l4spec.training.data.tokens import Codec
from l4spec.training.loop import TrainBatch, own_part
from l4spec.training.routing import LayerLoad, RoutingLog


@dataclass(frozen=True, slots=True)
class DepthScore:
    """Held-out text by a module of multi-token prediction: mean loss in nats per token, bits a byte, and acceptance.

    A draft is accepted where the module's likeliest token is the one that the model finds likeliest once it has read
    the text up to there; `acceptance` is the share of it where the drafts of all modules before were accepted.
    """

    loss: float
    bits_per_byte: float
    acceptance: float

    @classmethod
    def of(cls, sums: Sequence[float], to_bits: float) -> "DepthScore":
        """From a row of `scores_by_depth`; `to_bits` are nats per token over bits a byte."""
        total, count, compared, agreed = sums
        loss = total / max(count, 1)
        return cls(loss, loss / to_bits, agreed / max(compared, 1))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of held-out text: mean loss in nats per token, bits a byte, and load of experts, tokens choosing."""

    loss: float
    bits_per_byte: float
    routing: Mapping[str, LayerLoad] = field(default_factory=dict)
    depths: Sequence[DepthScore] = ()
    """Scores of modules of multi-token prediction, in the order of their depths."""

    @property
    def by_depth(self) -> dict[str, float]:
        """The numbers of `depths` by their names in metrics."""
        named: dict[str, float] = {}
        for depth, score in enumerate(self.depths, start=1):
            named[f"mtp_held_out_loss_{depth}"] = score.loss
            named[f"mtp_bits_per_byte_{depth}"] = score.bits_per_byte
            named[f"mtp_acceptance_{depth}"] = score.acceptance
        return named


@torch.no_grad()
def evaluate(model: RankModel, batch: TrainBatch, bytes_per_token: float, *, modules: bool = False) -> Evaluation:
    """The same on every rank; all must call it. Bits per byte are nats / ln 2 x tokens / bytes.

    With `modules` those of multi-token prediction are scored, too.
    """
    model.eval()
    log = RoutingLog(model)
    own = own_part(model, batch).to(model.device)
    inputs: dict[str, Any] = dict(own.inputs)
    if modules:
        sums = scores_by_depth(model, own)
    else:
        total = model.loss(own.input_ids, own.labels, count=torch.ones((), device=model.device), **inputs)
        sums = torch.stack((total.double(), (own.labels != IGNORED).sum(), *total.new_zeros(2)))[None]
    main, *further = sum_over(sums, model.mesh.data).tolist()
    routing = log.finish()
    model.record = None
    loss, to_bits = main[0] / max(main[1], 1), math.log(2) * bytes_per_token
    return Evaluation(loss, loss / to_bits, routing, tuple(DepthScore.of(one, to_bits) for one in further))


def scores_by_depth(model: RankModel, own: TrainBatch) -> Tensor:
    """Sums over this rank's rows, of the model and each of its modules [1 + modules, 4].

    They are the losses, their number, the drafts that are compared with the model, and those among them that agree.
    """
    ids, labels, sequence_ids = own.input_ids, own.labels, own.inputs.get("sequence_ids")
    likeliest: list[Tensor] = []
    agreed = torch.ones_like(labels, dtype=torch.bool)

    def score(depth: int, logits: Tensor) -> Tensor:
        nonlocal agreed
        targets = further_targets(ids, labels, sequence_ids, depth)[1] if depth else labels
        columns, one = range(logits.shape[-1]), torch.ones((), device=logits.device)
        total = vocab_parallel_cross_entropy(logits, targets, columns, Axis(), one).double()
        likeliest.append(logits.argmax(dim=-1))
        compared = agreed & (targets != IGNORED) if depth else torch.zeros_like(agreed)
        if depth:
            agreed = compared & (likeliest[depth] == likeliest[0].roll(-depth, dims=1))
        return torch.stack((total, (targets != IGNORED).sum(), compared.sum(), (agreed & compared).sum()))

    return torch.stack(model.run_with_modules(ids, score, sequence_ids=sequence_ids))


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
