"""The learner beside generation in processes of their own: weights pushed, staleness bounded, actors replaced."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType

import torch
import torch.multiprocessing as processes
from torch import Tensor

from l4spec.errors import UserError
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.model import RankModel
from l4spec.spec.recipe.rollouts import RolloutSpec
from l4spec.training.recipe.actor_process import DrawnAnswers, GroupAnswers, PromptGroups, SharedWeights, act
from l4spec.training.recipe.answers import answer_rows
from l4spec.training.recipe.job import RecipeJob

MOST_LOST = 3
"""Actors that may be lost one after the other without an answer between them."""
_END_SECONDS = 5.0


@dataclass
class _Actor:
    process: SpawnProcess
    pipe: Connection
    numbers: set[int] = field(default_factory=set)


class Actors:
    """Processes that generate for a phase. `batch` returns the answers of a step; `close` ends the processes.

    Groups are begun while their number is below (updates + 1 + staleness) x groups of a batch, and dealt to the actor
    with the fewest. The groups of an actor that ends by itself are begun again by a new one.
    """

    def __init__(self, job: RecipeJob, groups: PromptGroups, model: RankModel) -> None:
        self.job, self.groups, self.model = job, groups, model
        self.phase, self.rollouts = groups.phase, groups.phase.rollouts or RolloutSpec()
        self.staleness = 0.0 if self.rollouts.mode == "synchronous" else self.rollouts.staleness
        self.shared = SharedWeights(model)
        self.ended: dict[int, GroupAnswers] = {}
        self.begun: int | None = None
        self.num_lost = 0
        self.actors: list[_Actor] = []

    def batch(self, updates: int) -> DrawnAnswers:
        """The rows of the next update: weights are pushed, groups begun, and those that end first taken."""
        began = time.perf_counter()
        self.shared.write(self.model, updates)
        self._begin(updates)
        count = self.groups.of_a_step
        while (chosen := self._next(updates * count, count)) is None:
            self._receive()
        seconds = time.perf_counter() - began
        taken = [self.ended.pop(number) for number in chosen]
        late = [updates - one.updates for one in taken]
        drawn = self._drawn(taken)
        metrics = {"staleness": sum(late) / len(late), "most_stale": float(max(late)), "waited_seconds": seconds}
        return replace(drawn, rows=replace(drawn.rows, metrics=metrics))

    def close(self) -> None:
        """End all actors: their pipes are closed, and those that do not mind are ended."""
        for actor in self.actors:
            actor.pipe.close()
        for actor in self.actors:
            actor.process.join(_END_SECONDS)
            if actor.process.is_alive():
                actor.process.kill()
                actor.process.join()
        self.actors = []

    def _begin(self, updates: int) -> None:
        count = self.groups.of_a_step
        if self.begun is None:
            self.begun = updates * count
            self.actors = [self._start() for _ in range(self.rollouts.actors)]
        allowed = int((updates + 1 + self.staleness) * count)
        shares: dict[int, list[int]] = {index: [] for index in range(len(self.actors))}
        for number in range(self.begun, allowed):
            index = min(shares, key=lambda one: len(self.actors[one].numbers))
            self.actors[index].numbers.add(number)
            shares[index].append(number)
        self.begun = max(self.begun, allowed)
        for index, numbers in shares.items():
            self._send(index, numbers)

    def _send(self, index: int, numbers: Sequence[int]) -> None:
        try:
            if numbers:
                self.actors[index].pipe.send(list(numbers))
        except ConnectionError:
            self._replace(index)

    def _start(self) -> _Actor:
        context = processes.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=act, args=(self.job.fresh(), self.phase, self.shared, theirs), daemon=True)
        with _main_left_alone():
            process.start()
        theirs.close()
        return _Actor(process, ours)

    def _replace(self, index: int) -> None:
        """Start a new actor for one that is gone, with its unfinished groups."""
        lost = self.actors[index]
        self.num_lost += 1
        if self.num_lost > MOST_LOST:
            raise UserError(
                f"phase {self.phase.name}: {self.num_lost} actors ended without an answer, the last with exit code "
                f"{lost.process.exitcode}",
                hint="what they wrote on stderr says why",
            )
        lost.pipe.close()
        self.actors[index] = self._start()
        self.actors[index].numbers = lost.numbers
        self._send(index, sorted(lost.numbers))

    def _receive(self) -> None:
        """Receive pending answers; an actor that is gone is replaced."""
        ready = wait([actor.pipe for actor in self.actors])
        for index, actor in enumerate(self.actors):
            if actor.pipe not in ready:
                continue
            try:
                answers: GroupAnswers = actor.pipe.recv()
            except (EOFError, ConnectionError):
                self._replace(index)
                continue
            self.num_lost = 0
            actor.numbers.discard(answers.number)
            self.ended[answers.number] = answers

    def _next(self, first: int, count: int) -> list[int] | None:
        """Numbers of the next batch's groups, as they were begun or as they ended; None while some are missing."""
        if self.rollouts.in_order or self.staleness == 0:
            numbers = list(range(first, first + count))
            return numbers if all(number in self.ended for number in numbers) else None
        return list(self.ended)[:count] if len(self.ended) >= count else None

    def _drawn(self, taken: Sequence[GroupAnswers]) -> DrawnAnswers:
        """Ids and labels of all answers, and the log probabilities of those who drew them as `old`."""
        codec = self.groups.mixture.codec
        asked = [self.groups.prompt(one.number) for one in taken for _ in one.ids]
        ids = [list(answer) for one in taken for answer in one.ids]
        rows = answer_rows(asked, ids, max(len(one.prompt) for one in asked) + self.phase.max_answer, codec.end_id)
        old: Tensor = torch.zeros(rows.labels.shape)
        scores = [answer for one in taken for answer in one.log_probs]
        for row, one in enumerate(scores):
            old[row][rows.labels[row] != IGNORED] = torch.tensor(one)
        return DrawnAnswers(asked, ids, replace(rows, extras={"old": old}))


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """Let a new process not import the program that was started: it needs nothing of it, and may run it again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
