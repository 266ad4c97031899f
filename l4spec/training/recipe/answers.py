"""Prompts whose answers can be checked, and rows of a prompt with an answer after it, padded at their ends."""

import random
from collections.abc import Mapping, Sequence

import torch

from l4spec.errors import UserError
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.spec.recipe.data import DialogueSource, SyntheticSource
from l4spec.training.data.mixture import Mixture
from l4spec.training.loop import TrainBatch
from l4spec.training.recipe.evaluation import Asked

_HINT = "use synthetic arithmetic, questions or retrieval, or dialogues of your own"


def prompts(mixture: Mixture, weights: Mapping[str, float], count: int, key: str, *, is_held_out: bool) -> list[Asked]:
    """`count` prompts of the mixture's sources, the same for the same `key`.

    Raises UserError for a source without answers: dialogues have them, and made-up text of which a part is not learned.
    """
    draw = random.Random(f"{mixture.seed} {key}")
    names = sorted(weights)
    asked = []
    for _ in range(count):
        name = draw.choices(names, [weights[one] for one in names])[0]
        if not isinstance(mixture.spec.sources[name], SyntheticSource | DialogueSource):
            raise UserError(f"the source {name!r} has no answers to check", hint=_HINT)
        *before, last = mixture.document(name, draw, is_held_out=is_held_out)
        prompt = "".join(segment.text for segment in before)
        if not prompt:
            raise UserError(f"the source {name!r} has no answers to check", hint=_HINT)
        asked.append(Asked(tuple(mixture.codec.encode(prompt)), last.text, last.rejected))
    return asked


def answer_rows(asked: Sequence[Asked], answers: Sequence[Sequence[int]], width: int, pad: int) -> TrainBatch:
    """Ids and labels [rows, width]: labels are those of answers alone. Rows that are longer are cut."""
    ids = torch.full((len(asked), width + 1), pad)
    labels = torch.full((len(asked), width + 1), IGNORED)
    mask = torch.zeros(len(asked), width + 1, dtype=torch.long)
    for row, (one, answer_ids) in enumerate(zip(asked, answers, strict=True)):
        whole = torch.tensor([*one.prompt, *answer_ids])[: width + 1]
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        labels[row, len(one.prompt) : len(whole)] = whole[len(one.prompt) :]
    return TrainBatch(ids[:, :-1], labels[:, 1:], {"attention_mask": mask[:, :-1]})


def right_answer(mixture: Mixture, asked: Asked) -> list[int]:
    """The ids of the right answer, and the end."""
    return [*mixture.codec.encode(asked.answer), mixture.codec.end_id]


def wrong_answer(mixture: Mixture, asked: Asked, key: str) -> list[int]:
    """The ids of a wrong answer, and the end: the rejected one, or the right one with a digit of it changed."""
    if asked.rejected is not None:
        return [*mixture.codec.encode(asked.rejected), mixture.codec.end_id]
    draw = random.Random(f"{mixture.seed} {key}")
    place = draw.randrange(len(asked.answer))
    others = [digit for digit in "0123456789" if digit != asked.answer[place]]
    text = asked.answer[:place] + draw.choice(others) + asked.answer[place + 1 :]
    return [*mixture.codec.encode(text), mixture.codec.end_id]


def require_pairs(mixture: Mixture, weights: Mapping[str, float]) -> None:
    """Raise UserError for dialogues of a source of which one has no rejected answer."""
    for name in sorted(weights):
        source = mixture.spec.sources[name]
        if isinstance(source, DialogueSource):
            mixture.require_rejected(name, source)
