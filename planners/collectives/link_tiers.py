"""Which links a group of ranks sends over: how much of its traffic crosses hosts, by the mesh's rank order.

Ranks are numbered row by row in the mesh pp x dp x ep x cp x tp, and a host holds consecutive ranks; so tp, the axis of
neighbouring ranks, is the first to stay inside a host, then cp, ep, dp and pp.
"""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from l4spec.sharding.layout import Layout

Axis = Literal["tp", "cp", "ep", "pp", "dp", "dp_ep"]
"""A mesh axis, or the ranks of dp and ep together, which share all weights but experts."""
Pattern = Literal["ring", "peers", "chain"]
"""Who sends to whom: everyone to the next one and the last to the first; everyone to everyone; a stage to the next."""


def span_of(layout: Layout, axis: Axis) -> tuple[int, int]:
    """(ranks of a group, distance of neighbours in it) along an axis."""
    inner = layout.tp * layout.cp
    return {
        "tp": (layout.tp, 1),
        "cp": (layout.cp, layout.tp),
        "ep": (layout.ep, inner),
        "dp": (layout.dp, inner * layout.ep),
        "dp_ep": (layout.dp * layout.ep, inner),
        "pp": (layout.pp, inner * layout.ep * layout.dp),
    }[axis]


@lru_cache(maxsize=4096)
def between_hosts(layout: Layout, axis: Axis, pattern: Pattern, host_size: int) -> Fraction:
    """The share of an axis' traffic that crosses hosts of `host_size` devices, the mean over all devices.

    The mean, since a ring crosses hosts at few of its ranks, and libraries run several rings that cross at different
    ones: it is what one device's share of a host's network carries.
    """
    size, stride = span_of(layout, axis)
    if size == 1:
        return Fraction(0)
    if stride >= host_size:
        return Fraction(1)
    starts = Counter(start % host_size for start in range(0, layout.num_devices, size * stride))
    total = Fraction(0)
    for start, count in starts.items():
        inner = range(stride) if host_size % stride or start % stride else range(1)  # else all of them stand alike
        hosts = [[(start + first + rank * stride) // host_size for rank in range(size)] for first in inner]
        total += count * sum((_crossing(group, pattern) for group in hosts), Fraction(0)) / len(hosts)
    return total / starts.total()


def _crossing(hosts: list[int], pattern: Pattern) -> Fraction:
    """The share of messages of a group, given the host of each of its ranks, that cross hosts."""
    size = len(hosts)
    if pattern == "peers":
        inside = sum(count * (count - 1) for count in Counter(hosts).values())
        return 1 - Fraction(inside, size * (size - 1))
    hops = list(_hops(hosts, around=pattern == "ring"))
    return Fraction(sum(a != b for a, b in hops), len(hops))


def _hops(hosts: list[int], *, around: bool) -> Iterator[tuple[int, int]]:
    yield from pairwise(hosts)
    if around:
        yield hosts[-1], hosts[0]
