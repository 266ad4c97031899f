"""The pool of blocks of one rank: allocation, sharing and eviction."""

from collections.abc import Iterable
from dataclasses import dataclass

from l4spec.units import ceil_div
from planners.simulate.cache.law import CacheLaw
from planners.simulate.cache.prefix_tree import Node, Path, PrefixTree


@dataclass(slots=True)
class Holding:
    """Blocks of one sequence: `cached` blocks of tokens at the beginning are in the prefix tree down to `node`.

    The first `attached` of them were there before. `own` counts blocks of the pool that it holds alone; it has given
    back `released` blocks of the pool that local layers no longer reach.
    """

    node: Node
    cached: int = 0
    attached: int = 0
    own: int = 0
    released: int = 0


class BlockPool:
    """`capacity` blocks: used, unused but cached, and free ones always sum up to it."""

    def __init__(self, capacity: int, law: CacheLaw, *, caching: bool) -> None:
        self.capacity = capacity
        self.law = law
        self.caching = caching
        self.tree = PrefixTree()
        self.own = 0
        self.claimed = 0
        """Blocks that other schedulers of the pool need for their unfinished work: micro-batches of a pipeline."""
        self.groups = law.groups
        self.local = law.groups - law.full_groups
        self.evicted = 0

    @property
    def used(self) -> int:
        """Blocks that some sequence needs."""
        tree = self.tree
        dropped = (tree.num_dropped - tree.num_unused_dropped) * self.local
        return (tree.num_blocks - tree.num_unused) * self.groups - dropped + self.own

    @property
    def available(self) -> int:
        """Available blocks: free ones and unused cached ones, except those that others claim."""
        return self.capacity - self.used - self.claimed

    @property
    def occupied(self) -> int:
        """Blocks with content, used or only cached."""
        tree = self.tree
        return tree.num_blocks * self.groups - tree.num_dropped * self.local + self.own

    def holding(self) -> Holding:
        """A sequence that holds nothing yet."""
        return Holding(self.tree.root)

    def cached_length(self, path: Path, limit: int) -> int:
        """Blocks of tokens at the beginning of `path` that are cached, at most `limit`."""
        return self.tree.peek(path, limit) if self.caching else 0

    def attach(self, holding: Holding, path: Path, limit: int) -> int:
        """Attach the cached prefix of a sequence without blocks; returns the blocks of tokens."""
        if not self.caching or limit <= 0:
            return 0
        node, length = self.tree.match(path, limit)
        self.tree.lock(node)
        holding.node, holding.cached, holding.attached = node, length, length
        return length

    def take(self, holding: Holding, count: int) -> bool:
        """Take `count` blocks for a sequence, evicting unused ones; False, and nothing changes, without room."""
        if count > self.available:
            return False
        holding.own += count
        self.own += count
        self._make_room()
        return True

    def take_for_each(self, holdings: Iterable[Holding | None], times: int) -> None:
        """Take `times` blocks of every group for each of several sequences. There must be room."""
        each, taken = times * self.groups, 0
        for holding in holdings:
            if holding is not None:
                holding.own += each
                taken += each
        self.own += taken
        assert self.used <= self.capacity, "room was counted"
        self._make_room()

    def share(self, holding: Holding, start: int, stop: int) -> None:
        """Put blocks of tokens that a sequence holds into the tree, by their ids: equal content may then use them."""
        if not self.caching or stop <= start:
            return
        count = stop - start
        holding.node, _ = self.tree.extend(holding.node, start, stop)
        holding.cached += count
        holding.own -= count * self.groups
        self.own -= count * self.groups

    def release(self, holding: Holding, tokens: int) -> None:
        """Release blocks that local layers cannot reach once `tokens` tokens are computed."""
        more = self.law.released(tokens) - holding.released
        if more <= 0:
            return
        holding.released += more
        if self.caching:
            upto = min(group.unreachable(tokens) for group in self.law.local) // self.law.block_size
            self.tree.drop_local(holding.node, holding.cached, holding.attached, upto)
        else:
            holding.own -= more
            self.own -= more

    def free(self, holding: Holding) -> None:
        """End a sequence's use of all its blocks; shared ones stay cached until they are evicted."""
        self.own -= holding.own
        self.tree.unlock(holding.node)
        holding.node, holding.cached, holding.attached = self.tree.root, 0, 0
        holding.own, holding.released = 0, 0

    def _make_room(self) -> None:
        """Evict unused blocks until everything that is there fits."""
        short = self.occupied - self.capacity
        while short > 0:
            node = self.tree.oldest()
            assert node is not None, "what is not used can be evicted"
            count = min(len(node), ceil_div(short, self.groups))
            self.evicted += count
            self.tree.evict(node, count)
            short = self.occupied - self.capacity
