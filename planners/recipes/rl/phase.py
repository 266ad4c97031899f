"""An RL phase, planned: how its GPUs are divided, how long its steps take, and when asynchrony pays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.recipe.phase import RlPhase
from l4spec.spec.recipe.rollouts import RolloutSpec
from planners.catalog.cluster import parse_cluster
from planners.counts.params import count_params
from planners.device.training_state import WEIGHT_BYTES
from planners.recipes.rl.events import simulate_rl
from planners.recipes.rl.lengths import AnswerLengths
from planners.recipes.rl.planned import PlannedDecode, planned_decode
from planners.recipes.rl.rl_plan import RlCondition, RlPhasePlan
from planners.recipes.rl.setup import RlSetup, RlTimes

EIGHTHS = tuple(eighth / 8 for eighth in range(1, 8))
SAMPLED_ANSWERS, ANSWERS_IN_ORDER, MOST_PARTS = 128, 512, 32
"""A sample has at least so many answers per step, more where they are taken in order, and is so great a part at
least."""
FORWARD = 1 / 3
"""FLOPs of a forward pass, as one for log probabilities is, over those of an update."""


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """Settings common to all setups of a phase. `train_seconds` are of the updates on a batch of answers, on all GPUs.

    Besides, the learner computes log probabilities of the policy, and with a KL of the reference, once for each batch.
    """

    rollouts: RolloutSpec
    answers: int
    lengths: AnswerLengths
    num_gpus: int
    per_replica: int
    decode: PlannedDecode
    train_seconds: float
    log_prob_seconds: float
    push_seconds: float

    def setup(self, share: float | None) -> RlSetup:
        """Asynchronous with this share of the GPUs for generation; None is synchronous on all of them."""
        replicas = max(1, int(self.num_gpus * (share or 1)) // self.per_replica)
        learning = self.num_gpus if share is None else self.num_gpus - replicas * self.per_replica
        if learning < 1:
            raise UserError(f"no GPU of {self.num_gpus} is left to train", hint="more GPUs, or smaller replicas")
        return RlSetup(
            answers=self.answers,
            lengths=self.lengths,
            replicas=replicas,
            slots=self.decode.slots,
            decode=self.decode.times,
            train_seconds=(self.train_seconds + self.log_prob_seconds) * self.num_gpus / learning,
            push_seconds=self.push_seconds,
            staleness=0.0 if share is None else self.rollouts.staleness,
            chunks=1 if share is None else self.rollouts.chunks,
            is_partial=self.rollouts.partial,
            in_order=share is not None and self.rollouts.in_order,
            is_colocated=share is None,
        )

    def fastest(self) -> tuple[RlSetup, RlTimes]:
        """The asynchronous setup of the share that the phase names, or of the fastest eighth.

        Shares are tried by their bounds, until no other can be faster.
        """
        shares = EIGHTHS if self.rollouts.generation_share is None else (self.rollouts.generation_share,)
        possible = [self.setup(share) for share in shares if self.num_gpus * share >= self.per_replica]
        if not possible:
            raise UserError(
                f"{self.num_gpus} GPUs, of which a replica takes {self.per_replica}, cannot be divided",
                hint="more GPUs, or rollouts.mode: synchronous",
            )
        samples = [(sample_of(setup), setup) for setup in possible]
        least, best = math.inf, possible[0]
        for sample, setup in sorted(samples, key=lambda pair: pair[0].least_step_seconds):
            if sample.least_step_seconds >= least:
                break
            seconds = _run(sample).step_seconds
            least, best = min((least, best), (seconds, setup), key=lambda one: one[0])
        return best, self.run(best)

    def learning(self, factor: float) -> "Infrastructure":
        """The same with a learner that takes so many times as long."""
        return replace(self, train_seconds=factor * self.train_seconds, log_prob_seconds=factor * self.log_prob_seconds)

    def speed_up(self) -> float:
        """Synchronous over asynchronous seconds of a step."""
        return self.run(self.setup(None)).step_seconds / self.fastest()[1].step_seconds

    def run(self, setup: RlSetup) -> RlTimes:
        """The times of a setup, by a sample; a larger one where answers are taken in order."""
        return _run(sample_of(setup, ANSWERS_IN_ORDER if setup.in_order else SAMPLED_ANSWERS))


def sample_of(setup: RlSetup, least: int = SAMPLED_ANSWERS) -> RlSetup:
    """A setup with fewer replicas and as many times fewer answers per step, `least` or more: steps take as long.

    They differ where answers are taken in order, by some percent: the longest one in flight depends on how many there
    are. Where a whole batch is waited for, the setup itself.
    """
    if not setup.has_queue:
        return setup
    shared = math.gcd(setup.replicas, setup.answers)
    parts = [n for n in range(1, MOST_PARTS + 1) if shared % n == 0 and setup.answers // n >= least]
    part = max(parts, default=1)
    return replace(setup, replicas=setup.replicas // part, answers=setup.answers // part)


_run = lru_cache(maxsize=256)(simulate_rl)  # conditions share setups, of which each runs once


def plan_rl(phase: RlPhase, graph: LayerGraph, gpus: str, train_seconds: float) -> RlPhasePlan:
    """Times of a phase whose update takes `train_seconds` on all `gpus`, a step being a batch of answers.

    Raises UserError where replicas do not hold the model, or GPUs cannot be divided.
    """
    assert phase.rollouts is not None, "asked for phases that say how they generate"
    whole = _infrastructure(phase, phase.rollouts, graph, gpus, train_seconds)
    together = whole.run(whole.setup(None))
    setup, apart = whole.fastest()
    is_apart = phase.rollouts.mode == "asynchronous"
    shown = apart if is_apart else together
    generating = setup.replicas * whole.per_replica
    return RlPhasePlan(
        mode=phase.rollouts.mode,
        generation_gpus=generating if is_apart else whole.num_gpus,
        training_gpus=whole.num_gpus - generating if is_apart else whole.num_gpus,
        gpus_per_replica=whole.per_replica,
        slots=setup.slots,
        answers=whole.answers,
        step_seconds=shown.step_seconds,
        synchronous_seconds=together.step_seconds,
        asynchronous_seconds=apart.step_seconds,
        speed_up=together.step_seconds / apart.step_seconds,
        generating=shown.generating,
        training=shown.training,
        mean_staleness=shown.mean_staleness,
        max_staleness=shown.max_staleness,
        push_seconds=whole.push_seconds,
        conditions=tuple(RlCondition(name=name, speed_up=one.speed_up()) for name, one in _others(whole).items()),
        notes=_notes(whole),
    )


def _infrastructure(
    phase: RlPhase, rollouts: RolloutSpec, graph: LayerGraph, gpus: str, train_seconds: float
) -> Infrastructure:
    cluster = parse_cluster(gpus)
    mean = rollouts.mean_answer or max(1, phase.max_answer // 2)
    lengths = AnswerLengths(float(mean), phase.max_answer, rollouts.spread)
    context, longest = rollouts.prompt + round(lengths.mean_tokens_before), rollouts.prompt + phase.max_answer
    per_replica, decode = _replica(rollouts, graph, cluster.hardware.name, cluster.num_gpus, context, longest)
    link = cluster.hardware.links.inter_host
    weights = count_params(graph).total * WEIGHT_BYTES
    push = 0.0 if link is None else weights / per_replica / link.value
    return Infrastructure(
        rollouts,
        phase.batch,
        lengths,
        cluster.num_gpus,
        per_replica,
        decode,
        phase.iterations * train_seconds,
        FORWARD * (2 if phase.kl_weight else 1) * train_seconds,
        push,
    )


def _replica(
    rollouts: RolloutSpec, graph: LayerGraph, device: str, most: int, context: int, longest: int
) -> tuple[int, PlannedDecode]:
    """GPUs of a replica and its times: the phase's, or the smallest power of two with room for the longest answer."""
    size = rollouts.gpus_per_replica or 1
    while True:
        try:
            times = planned_decode(graph, f"{size}x{device}", context, longest, rollouts)
        except UserError:
            if rollouts.gpus_per_replica is not None or size * 2 > most:
                raise
            size *= 2
        else:
            return size, times


def _others(whole: Infrastructure) -> Mapping[str, Infrastructure]:
    """Variants of the phase, each with one setting changed, whose speed-ups are compared."""
    lengths, rollouts = whole.lengths, whole.rollouts
    even = AnswerLengths(lengths.mean, lengths.longest, 0.0)
    return {
        "all answers equally long": replace(whole, lengths=even),
        "updates take no time": whole.learning(0.0),
        "updates take ten times as long": whole.learning(10.0),
        "four times as many answers a step": replace(whole.learning(4.0), answers=4 * whole.answers),
        "answers taken as they were begun": replace(whole, rollouts=rollouts.model_copy(update={"in_order": True})),
        "staleness 0": replace(whole, rollouts=rollouts.model_copy(update={"staleness": 0.0})),
        "staleness 8": replace(whole, rollouts=rollouts.model_copy(update={"staleness": 8.0})),
    }


def _notes(whole: Infrastructure) -> tuple[str, ...]:
    notes = [
        "the learner takes the planned step over its share of the GPUs, and a third of one for each batch of answers "
        "and model whose log probabilities it needs",
        "lengths are assumed log-normal; prompts are taken as read, and caches as large enough for all slots",
    ]
    if whole.decode.is_bound:
        notes.append("decode steps are bounds: no factors are fitted for these GPUs")
    if whole.push_seconds == 0:
        notes.append("no link between hosts is known: pushing weights takes no time here")
    return tuple(notes)
