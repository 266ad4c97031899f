"""Traffic between hosts, against a count over every rank of the mesh."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.sharding.layout import Layout, place_of
from planners.collectives.link_tiers import Axis, Pattern, between_hosts

AXES: dict[Axis, tuple[str, ...]] = {
    "tp": ("tp",),
    "ep": ("ep",),
    "pp": ("pp",),
    "dp": ("dp",),
    "dp_ep": ("dp", "ep"),
}
DEGREES = st.sampled_from([1, 2, 3, 4, 6])


def counted(layout: Layout, axis: Axis, pattern: Pattern, host_size: int) -> Fraction:
    """By asking of each rank who is in its group, and where they stand."""
    groups: dict[object, list[int]] = {}
    for rank in range(layout.num_devices):
        place = place_of(layout, rank)
        groups.setdefault(tuple(getattr(place, a) for a in place._fields if a not in AXES[axis]), []).append(rank)
    crossing = messages = 0
    for ranks in groups.values():
        if pattern == "peers":
            pairs = [(a, b) for a in ranks for b in ranks if a != b]
        else:
            pairs = list(pairwise(ranks))
            if pattern == "ring" and len(ranks) > 1:
                pairs.append((ranks[-1], ranks[0]))
        messages += len(pairs)
        crossing += sum(a // host_size != b // host_size for a, b in pairs)
    return Fraction(crossing, messages) if messages else Fraction(0)


@given(
    DEGREES,
    DEGREES,
    DEGREES,
    DEGREES,
    st.integers(1, 12),
    st.sampled_from(list(AXES)),
    st.sampled_from(["ring", "peers", "chain"]),
)
def test_the_share_between_hosts_is_what_counting_gives(
    tp: int, ep: int, pp: int, dp: int, host_size: int, axis: Axis, pattern: Pattern
) -> None:
    layout = Layout(tp=tp, ep=ep, pp=pp, dp=dp)
    assert between_hosts(layout, axis, pattern, host_size) == counted(layout, axis, pattern, host_size)


@pytest.mark.parametrize(
    ("axis", "pattern", "share"),
    [
        ("tp", "ring", Fraction(0)),
        ("ep", "peers", Fraction(1)),
        ("dp", "ring", Fraction(1)),
        ("pp", "chain", Fraction(1)),
    ],
)
def test_on_hosts_of_eight_only_tensor_parallelism_of_eight_stays_inside(
    axis: Axis, pattern: Pattern, share: Fraction
) -> None:
    assert between_hosts(Layout(tp=8, ep=2, pp=16, dp=128), axis, pattern, 8) == share


def test_half_the_hops_of_two_neighbouring_experts_groups_in_a_host_cross() -> None:
    """ep 4 over tp 4 on hosts of eight: two ranks of a group share a host, so 2 of 4 hops of a ring cross."""
    assert between_hosts(Layout(tp=4, ep=4), "ep", "ring", 8) == Fraction(1, 2)
    assert between_hosts(Layout(tp=4, ep=4), "ep", "peers", 8) == Fraction(2, 3)
