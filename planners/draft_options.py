"""Draft options of a request: acceptance rates of the tokens that a module of multi-token prediction proposes."""

from collections.abc import Iterator
from typing import Annotated

from l4spec.errors import Problem
from l4spec.graph.layer_graph import LayerGraph
from l4spec.options import Option, read_number

MOST_DRAFTED = 64


def read_acceptance(text: str) -> str:
    """Shares from 0 to 1 with commas, as `0.85,0.7`, kept as they are written. Raises ValueError."""
    acceptance_of(text)
    return text


def acceptance_of(text: str | None) -> tuple[float, ...]:
    """For each drafted token, the probability that it is accepted if all before it were; empty without text."""
    if text is None:
        return ()
    shares = tuple(read_number(part.strip()) for part in text.split(","))
    if len(shares) > MOST_DRAFTED or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"expected 1 to {MOST_DRAFTED} shares from 0 to 1, as 0.85,0.7, found {text[:60]!r}")
    return shares


DraftAcceptance = Annotated[
    str | None,
    Option(
        "Draft with the spec's text.mtp: shares of tokens accepted, by position, as 0.85 or 0.85,0.7.",
        metavar="SHARES",
        parse=read_acceptance,
        mode="serve",
        default="nothing is drafted",
    ),
]


def draft_problems(acceptance: str | None, graph: LayerGraph, *, beside_host: bool, cp: int) -> Iterator[Problem]:
    """Problems that rule out planning with draft tokens."""
    if acceptance is None:
        return
    if graph.model.text.mtp is None:
        hint = "add text.mtp to the spec, or leave it out; `l4spec simulate` drafts with another model too"
        yield Problem("the spec declares no multi-token prediction", path="draft_acceptance", hint=hint)
    for name, given in (("host_memory", beside_host), ("cp", cp > 1)):
        if given:
            yield Problem("is not planned with drafts", path=name, hint="leave one of both out")
