"""Shared beginnings of sequences as a radix tree whose edges are runs of block ids.

The content of a sequence is a path: runs `(start, stop)` of ids, one id per block, equal ids meaning equal content with
an equal beginning. Runs keep the work proportional to branches, not to blocks: a conversation of 100,000 tokens is a
handful of runs. Unused blocks stay until room is needed, the least recently used leaf first and its tail before its
head, which is the order of vLLM's free queue (blocks are freed in reverse) and of SGLang's radix cache.
"""

from heapq import heappop, heappush
from typing import Final

Path = tuple[tuple[int, int], ...]
"""Runs of block ids, stop excluded, from the beginning of a sequence; no run continues where the last one stopped."""


class Node:
    """A run of blocks below its parent; `refs` counts the sequences that use it now.

    Of its first `dropped` blocks only the layers that keep every token are still there.
    """

    __slots__ = ("alive", "children", "dropped", "parent", "refs", "start", "stop", "unused_since")

    def __init__(self, start: int, stop: int, parent: "Node | None") -> None:
        self.start, self.stop, self.parent = start, stop, parent
        self.children: dict[int, Node] = {}
        self.refs = 0
        self.unused_since = 0
        self.dropped = 0
        self.alive = True

    def __len__(self) -> int:
        return self.stop - self.start


class PrefixTree:
    """Cached blocks by content. `num_unused` of `num_blocks` are unused and may be evicted.

    `num_dropped` blocks have lost their part of local layers, `num_unused_dropped` of these are unused.
    """

    def __init__(self) -> None:
        self.root: Final = Node(0, 0, None)
        self.root.refs = 1
        self.num_blocks = 0
        self.num_unused = 0
        self.num_dropped = 0
        self.num_unused_dropped = 0
        self._clock = 0
        self._remembered = 0
        self._oldest: list[tuple[int, int, Node]] = []

    def match(self, path: Path, limit: int) -> tuple[Node, int]:
        """The node at which the cached beginning of `path` ends, and its length in blocks, at most `limit`.

        A run that is cached in part is split, so that the beginning ends with a node.
        """
        node, length = self.root, 0
        for start, stop in path:
            at = start
            while at < stop and length < limit:
                child = node.children.get(at)
                if child is None:
                    return node, length
                common = min(len(child), stop - at, limit - length)
                if common < len(child):
                    child = self._split(child, common)
                node, at, length = child, at + common, length + common
            if length >= limit:
                break
        return node, length

    def peek(self, path: Path, limit: int) -> int:
        """Length in blocks of the cached beginning of `path`, at most `limit`; nothing changes."""
        node, length = self.root, 0
        for start, stop in path:
            at = start
            while at < stop and length < limit:
                child = node.children.get(at)
                if child is None:
                    return length
                common = min(len(child), stop - at, limit - length)
                at, length = at + common, length + common
                if common < len(child):
                    return length
                node = child
        return length

    def lock(self, node: Node) -> None:
        """Use `node` and everything above it."""
        at = node
        while at.parent is not None:
            if at.refs == 0:
                self._used_again(at)
            at.refs += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        """End one use of `node` and everything above it."""
        at = node
        self._clock += 1
        while at.parent is not None:
            at.refs -= 1
            if at.refs == 0:
                self.num_unused += len(at)
                self.num_unused_dropped += at.dropped
                at.unused_since = self._clock
                if not at.children:
                    self._remember(at)
            at = at.parent

    def extend(self, node: Node, start: int, stop: int) -> tuple[Node, int]:
        """Blocks `start` to `stop` below the locked `node`, locked too: the last node, and how many blocks are new.

        Blocks that are cached already are used instead of new ones.
        """
        new = 0
        while start < stop:
            child = node.children.get(start)
            if child is None:
                node = self._grown(node, start, stop)
                new += stop - start
                break
            common = min(len(child), stop - start)
            if common < len(child):
                child = self._split(child, common)
            if child.refs == 0:
                self._used_again(child)
            child.refs += 1
            node, start = child, start + common
        return node, new

    def drop_local(self, node: Node, length: int, first: int, upto: int) -> None:
        """Of the path that ends with `node` after `length` blocks, drop the local layers' part of blocks up to `upto`.

        Only blocks that one sequence alone uses, from block `first` on: the cached prefix of a sequence is not its own.
        """
        at, end = node, length
        while at.parent is not None and end > first:
            begin = end - len(at)
            if begin < upto and begin >= first and at.refs == 1:
                dropped = min(len(at), upto - begin)
                self.num_dropped += dropped - at.dropped
                at.dropped = dropped
            at, end = at.parent, begin

    def oldest(self) -> Node | None:
        """The unused leaf that goes next, or None."""
        while self._oldest:
            since, _, node = self._oldest[0]
            if node.alive and not node.refs and not node.children and node.unused_since == since:
                return node
            heappop(self._oldest)
        return None

    def evict(self, node: Node, count: int) -> None:
        """Drop the last `count` blocks, at most all, of `oldest()`."""
        count = min(count, len(node))
        dropped = max(0, node.dropped - (len(node) - count))
        self.num_blocks -= count
        self.num_unused -= count
        self.num_dropped -= dropped
        self.num_unused_dropped -= dropped
        node.dropped -= dropped
        if count == len(node):
            heappop(self._oldest)
            self._remove(node)
        else:
            node.stop -= count

    def _grown(self, node: Node, start: int, stop: int) -> Node:
        self.num_blocks += stop - start
        if node.refs == 1 and node.stop == start and not node.children and node.parent is not None:
            node.stop = stop  # one sequence alone continues: no new node
            return node
        child = Node(start, stop, node)
        child.refs = 1
        node.children[start] = child
        return child

    def _split(self, node: Node, length: int) -> Node:
        """Cut `node` in two; returns the upper part, of `length` blocks."""
        assert node.parent is not None, "the root has no blocks"
        upper = Node(node.start, node.start + length, node.parent)
        upper.refs, upper.unused_since = node.refs, node.unused_since
        upper.dropped = min(node.dropped, length)
        node.dropped -= upper.dropped
        node.parent.children[node.start] = upper
        node.start += length
        node.parent = upper
        upper.children[node.start] = node
        return upper

    def _used_again(self, node: Node) -> None:
        self.num_unused -= len(node)
        self.num_unused_dropped -= node.dropped

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        node.alive = False
        del parent.children[node.start]
        if parent.refs == 0 and not parent.children:
            self._remember(parent)

    def _remember(self, node: Node) -> None:
        self._remembered += 1
        heappush(self._oldest, (node.unused_since, self._remembered, node))
