"""An RL actor: a process that generates answers with the learner's weights as they come, until its pipe is closed."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import sleep

import torch
from torch import Tensor

from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.training import local_of
from l4spec.spec.recipe.phase import RlPhase
from l4spec.training.data.mixture import Mixture, weights_of
from l4spec.training.loop import TrainBatch
from l4spec.training.recipe.answers import answer_rows, prompts
from l4spec.training.recipe.evaluation import AnswerSampling, Asked, answer, log_probs_of
from l4spec.training.recipe.job import RecipeJob

SEGMENT = 8
"""Tokens that are generated between two looks for new weights."""
_PAUSE_SECONDS = 0.001


class SharedWeights:
    """A model's tensors in memory that all processes see, and the number of updates that they have had.

    No lock: a process that is killed would keep it. The stamp is odd while tensors are written, and who read between
    two stamps reads again.
    """

    def __init__(self, model: RankModel) -> None:
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self.tensors[name] = _shared(local_of(tensor).detach().clone())
        self.stamp = _shared(torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def write(self, model: RankModel, updates: int) -> None:
        """Let all see these weights."""
        self.stamp.fill_(2 * updates + 1)
        for name, shared in self.tensors.items():
            shared.copy_(local_of(model.get_tensor(name)))
        self.stamp.fill_(2 * updates + 2)

    @torch.no_grad()
    def read(self, model: RankModel) -> int:
        """Take the newest weights; the updates that they have had."""
        while True:
            before = int(self.stamp)
            if before % 2 == 0:
                for name, tensor in model.state_dict(keep_vars=True).items():
                    local_of(tensor).copy_(self.tensors[name])
                if int(self.stamp) == before:
                    return before // 2 - 1
            sleep(_PAUSE_SECONDS)


def _shared(tensor: Tensor) -> Tensor:
    """The tensor, moved to memory that other processes can open."""
    tensor.untyped_storage().share_memory_()
    return tensor


@dataclass(frozen=True, slots=True)
class GroupAnswers:
    """Answers to one prompt, with each token's log probability under the weights that drew it.

    `updates` is the number of updates of the weights at the first token.
    """

    number: int
    updates: int
    ids: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class DrawnAnswers:
    """Answers of a batch; the rows' extra `old` are log probabilities under the weights that drew each token."""

    asked: list[Asked]
    ids: list[list[int]]
    rows: TrainBatch


@dataclass(frozen=True)
class PromptGroups:
    """The prompts of a phase by the number of their group, the same in every process."""

    phase: RlPhase
    mixture: Mixture
    weights: Mapping[str, float]

    @property
    def of_a_step(self) -> int:
        """Groups of a batch."""
        return self.phase.batch // self.phase.group

    def prompt(self, number: int) -> Asked:
        """The prompt of a group."""
        step, index = divmod(number, self.of_a_step)
        key = f"{self.phase.name} {step}"
        return prompts(self.mixture, self.weights, self.of_a_step, key, is_held_out=False)[index]


def draw_groups(
    model: RankModel, groups: PromptGroups, numbers: Sequence[int], seed: int, refresh: Callable[[], int]
) -> list[GroupAnswers]:
    """Answers to the prompts of these groups, together. `refresh` takes the newest weights and counts their updates.

    Between segments weights are refreshed where the phase lets answers continue under new ones (`partial`).
    """
    phase, codec = groups.phase, groups.mixture.codec
    begun = refresh()
    asked = [groups.prompt(number) for number in numbers for _ in range(phase.group)]
    ids: list[list[int]] = [[] for _ in asked]
    scores: list[list[float]] = [[] for _ in asked]
    going = list(range(len(asked)))
    is_partial = phase.rollouts is not None and phase.rollouts.partial
    for start in range(0, phase.max_answer, SEGMENT):
        if not going:
            break
        if start and is_partial:
            refresh()
        so_far = [Asked((*asked[row].prompt, *ids[row]), "") for row in going]
        most = min(SEGMENT, phase.max_answer - start)
        sampling = AnswerSampling(most, phase.temperature, seed * 1_000_003 + numbers[0] * phase.max_answer + start)
        more = answer(model, so_far, codec, sampling)
        width = max(len(one.prompt) for one in so_far) + most
        batch = answer_rows(so_far, more, width, codec.end_id)
        log_probs = log_probs_of(model, batch).cpu()
        for index, row in enumerate(going):
            ids[row] += more[index]
            scores[row] += log_probs[index][batch.labels[index] != IGNORED].tolist()
        going = [row for row in going if ids[row][-1] != codec.end_id]
    return [
        GroupAnswers(
            number,
            begun,
            tuple(tuple(one) for one in ids[index * phase.group : (index + 1) * phase.group]),
            tuple(tuple(one) for one in scores[index * phase.group : (index + 1) * phase.group]),
        )
        for index, number in enumerate(numbers)
    ]


def act(job: RecipeJob, phase: RlPhase, shared: SharedWeights, pipe: Connection) -> None:
    """Generate the groups whose numbers come through the pipe, and send each back. Ends when the learner does."""
    torch.set_num_threads(job.num_threads or torch.get_num_threads())
    model = distribute(build(job.graph, "meta", job.number_format), job.layout, device="cpu", seed=None, train=True)
    recipe = job.loaded.recipe
    mixture = Mixture(recipe.data, job.seed, job.loaded.folder)
    groups = PromptGroups(phase, mixture, weights_of(recipe.data, phase.mixture))
    at_a_time = max(1, (phase.rollouts.slots if phase.rollouts else phase.batch) // phase.group)
    waiting: deque[int] = deque()
    try:
        while True:
            if not waiting or pipe.poll():
                waiting.extend(pipe.recv())
                continue
            numbers = [waiting.popleft() for _ in range(min(at_a_time, len(waiting)))]
            for answers in draw_groups(model.eval(), groups, numbers, job.seed, lambda: shared.read(model)):
                pipe.send(answers)
    except (EOFError, ConnectionError):
        return
