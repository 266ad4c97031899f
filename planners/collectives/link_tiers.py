"""Links of a group of ranks: the share of its traffic that crosses hosts, by the mesh's rank order.

Ranks are numbered row by row in the mesh pp x dp x ep x cp x tp, and a host holds consecutive ranks; so tp, the axis of
neighbouring ranks, is the first to stay inside a host, then cp, ep, dp and pp.
"""

from collections import Counter
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import Literal

from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div

Axis = Literal["tp", "cp", "ep", "pp", "dp", "dp_ep", "dp_cp", "dp_ep_cp"]
"""A mesh axis, or the ranks of dp and ep together, which share all weights but experts; in training with cp."""
Pattern = Literal["ring", "peers", "chain"]
"""Communication pattern: each rank to the next and the last to the first; all to all; each stage to the next."""


def span_of(layout: Layout, axis: Axis) -> tuple[int, int]:
    """(ranks of a group, distance of neighbours in it) along an axis."""
    inner = layout.tp * layout.cp
    if axis in ("dp_cp", "dp_ep_cp"):  # neighbours are those of cp
        return layout.expert_copies if axis == "dp_cp" else layout.dense_copies, layout.tp
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
    ones: it is the load of one device's share of a host's network.
    """
    size, stride = span_of(layout, axis)
    if size == 1:
        return Fraction(0)
    if axis == "dp_cp" and layout.ep > 1:  # from the last rank of cp to the next of dp
        inside = between_hosts(layout, "cp", "chain", host_size) * (layout.cp - 1)
        return (inside + between_hosts(layout, "dp", pattern, host_size)) / layout.cp
    if stride >= host_size:
        return Fraction(1)
    num_groups, period = layout.num_devices // (size * stride), host_size // gcd(size * stride, host_size)
    total = Fraction(0)
    for group in range(min(num_groups, period)):  # where groups begin in a host repeats
        start, alike = group * size * stride, ceil_div(num_groups - group, period)
        inner = range(stride) if host_size % stride or start % stride else range(1)  # else all of them stand alike
        shares = (_crossing(start + first, size, stride, host_size, pattern) for first in inner)
        total += alike * sum(shares, Fraction(0)) / len(inner)
    return total / num_groups


def _crossing(start: int, size: int, stride: int, host_size: int, pattern: Pattern) -> Fraction:
    """The share of messages that cross hosts, in a group of `size` devices from `start`, `stride` < `host_size` apart.

    Neighbours are on one host or on the next, so a chain crosses once for every host but the first.
    """
    if pattern == "peers":
        hosts = Counter((start + rank * stride) // host_size for rank in range(size))
        inside = sum(count * (count - 1) for count in hosts.values())
        return 1 - Fraction(inside, size * (size - 1))
    crossed = (start + (size - 1) * stride) // host_size - start // host_size
    return Fraction(crossed + (crossed > 0), size) if pattern == "ring" else Fraction(crossed, size - 1)
