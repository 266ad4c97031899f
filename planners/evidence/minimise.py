"""A minimiser for a handful of parameters, in plain Python: the planner needs no numerical library."""

from collections.abc import Callable, Sequence

Point = tuple[float, ...]


def minimise(
    cost: Callable[[Point], float], start: Sequence[float], *, step: float = 0.15, rounds: int = 1500
) -> Point:
    """The best point that the downhill simplex of Nelder and Mead (1965) finds within `rounds` moves from `start`."""
    simplex = [tuple(start)]
    for index in range(len(start)):
        simplex.append(tuple(x + (step if at == index else 0.0) for at, x in enumerate(start)))
    ranked = sorted((cost(point), point) for point in simplex)
    for _ in range(rounds):
        if ranked[-1][0] - ranked[0][0] < 1e-9:
            break
        ranked = sorted(_move(cost, ranked))
    return ranked[0][1]


def _move(cost: Callable[[Point], float], ranked: list[tuple[float, Point]]) -> list[tuple[float, Point]]:
    """Reflect the worst point at the others' centre; stretch, contract or shrink as that turns out."""
    worst = ranked[-1][1]
    others = [point for _, point in ranked[:-1]]
    centre = tuple(sum(axis) / len(others) for axis in zip(*others, strict=True))

    def towards(share: float) -> tuple[float, Point]:
        point = tuple(c + share * (c - w) for c, w in zip(centre, worst, strict=True))
        return cost(point), point

    reflected = towards(1.0)
    if reflected[0] < ranked[0][0]:
        return [*ranked[:-1], min(reflected, towards(2.0))]
    if reflected[0] < ranked[-2][0]:
        return [*ranked[:-1], reflected]
    contracted = towards(-0.5)
    if contracted[0] < ranked[-1][0]:
        return [*ranked[:-1], contracted]
    best = ranked[0][1]
    shrunk = (tuple(b + 0.5 * (p - b) for b, p in zip(best, point, strict=True)) for _, point in ranked[1:])
    return [ranked[0], *((cost(point), point) for point in shrunk)]
