"""Inputs of an RL simulation: answer lengths, generating replicas, the learner, and how they alternate."""

from bisect import bisect_left
from dataclasses import dataclass

from planners.recipes.rl.lengths import AnswerLengths


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds of a decode step of one replica by the number of sequences: linear between the sizes that are known.

    Beyond the last size it continues with the last slope; below the first it is the first.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, sequences: int) -> float:
        """Seconds with this many sequences."""
        if len(self.sizes) == 1 or sequences <= self.sizes[0]:
            return self.seconds[0]
        right = min(bisect_left(self.sizes, sequences), len(self.sizes) - 1)
        left = right - 1
        slope = (self.seconds[right] - self.seconds[left]) / (self.sizes[right] - self.sizes[left])
        return self.seconds[left] + slope * (sequences - self.sizes[left])

    def times(self, factor: float) -> "DecodeTimes":
        """Every time multiplied."""
        return DecodeTimes(self.sizes, tuple(factor * one for one in self.seconds))


@dataclass(frozen=True, slots=True)
class RlSetup:
    """One way to run online RL.

    `answers` are those of a step. Answers may be begun until (updates done + 1 + `staleness`) x `answers` of them have
    been. The learner takes answers in `chunks` equal parts as they come, whole batches by default, and new weights are
    pushed after each batch, for which generation pauses for `push_seconds`. With `is_partial`, answers that are being
    generated continue with the new weights; else a replica begins no new ones and ends its own before it takes weights.
    `in_order`: answers are taken as they were begun, so that none is staler than `staleness`; else as they end.
    `is_colocated`: the same GPUs generate and train, so that nothing is generated while the learner works.
    """

    answers: int
    lengths: AnswerLengths
    replicas: int
    slots: int
    decode: DecodeTimes
    train_seconds: float
    push_seconds: float = 0.0
    staleness: float = 0.0
    chunks: int = 1
    is_partial: bool = True
    in_order: bool = False
    is_colocated: bool = False
    seed: int = 0

    @property
    def has_queue(self) -> bool:
        """True if answers queue for the learner, more with every update up to the limit."""
        return self.staleness >= 1

    @property
    def least_step_seconds(self) -> float:
        """A bound on a step's seconds: its update, and its tokens on replicas that are always at their fastest.

        Where no answer is begun before the update before it ends, one after the other, and no shorter than the longest
        answer alone; else the longer of both.
        """
        fastest = max(sequences / self.decode.at(sequences) for sequences in range(1, self.slots + 1))
        generating = self.lengths.tokens(self.answers) / (fastest * self.replicas)
        if self.is_colocated or (self.staleness == 0 and self.chunks == 1):
            return self.train_seconds + max(generating, self.lengths.longest_of(self.answers) * self.decode.at(1))
        return max(self.train_seconds, generating)


@dataclass(frozen=True, slots=True)
class RlTimes:
    """Results of a simulation, in the mean over its steps after the warm-up.

    `generating` is the share of replicas' time with work to do, `training` that of the learner's. Staleness counts
    updates between an answer's first token and the time the learner takes it; `in_flight` are answers begun and not
    taken, in the mean over time, and `in_flight_at_updates` over the moments of updates. `latency_seconds` is an
    answer's time from its first token until it is taken.
    """

    step_seconds: float
    generating: float
    training: float
    mean_staleness: float
    max_staleness: int
    in_flight: float
    in_flight_at_updates: float
    latency_seconds: float
    answers: int

    @property
    def staleness_by_littles_law(self) -> float:
        """Answers in flight over answers per step."""
        return self.in_flight_at_updates / self.answers
