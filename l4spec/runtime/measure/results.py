"""Measurements of one rank, as sent to the launcher. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

from pydantic import TypeAdapter

RankStage = Literal["weights", "caches", "prefill", "decode", "memory", "time", "training"]
RANK_STAGES: tuple[RankStage, ...] = ("weights", "caches", "prefill", "decode", "memory", "time", "training")


@dataclass(frozen=True, slots=True)
class Ran:
    """One pass: FLOPs by node id, calls and bytes by `axis collective`, and how many chose each expert by node id."""

    flops: dict[str, int]
    handed: dict[str, tuple[int, int]]
    load: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class RankMeasurement:
    """Measurements of one rank; None: not measured, or not yet. Times are medians."""

    params_by_part: dict[str, int] | None = None
    weight_bytes: int | None = None
    cache_bytes: dict[int, int] | None = None
    prefill: Ran | None = None
    decode: Ran | None = None
    """The last step, whose token is the last of prefill + decode, and the choice of the token after it."""
    training: Ran | None = None
    activation_bytes: int | None = None
    """Most memory of a prefill beyond weights, caches and token ids."""
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    done: tuple[RankStage, ...] = ()

    def written(self) -> str:
        """For the store."""
        return _ADAPTER.dump_json(self).decode()

    @classmethod
    def read(cls, texts: Sequence[str | bytes]) -> Self:
        """Construct from the results that a rank wrote stage by stage."""
        merged = cls()
        for piece in map(_ADAPTER.validate_json, texts):
            known = {field.name: getattr(piece, field.name) for field in fields(cls)}
            changed = {name: value for name, value in known.items() if value is not None}
            merged = replace(merged, **{**changed, "done": (*merged.done, *piece.done)})
        return merged


_ADAPTER = TypeAdapter(RankMeasurement)
