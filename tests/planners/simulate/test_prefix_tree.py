"""The prefix tree against a set of blocks kept one by one."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from planners.simulate.cache.prefix_tree import Node, PrefixTree


def test_what_was_put_in_is_found_again_and_goes_oldest_first_tail_before_head() -> None:
    tree = PrefixTree()
    first, new = tree.extend(tree.root, 0, 10)
    assert new == 10
    tree.unlock(first)
    second, new = tree.extend(tree.root, 100, 104)
    tree.unlock(second)
    assert (tree.num_blocks, tree.num_unused) == (14, 14)
    assert tree.peek(((0, 20),), 99) == 10
    oldest = tree.oldest()
    assert oldest is first
    tree.evict(oldest, 4)
    assert tree.peek(((0, 20),), 99) == 6
    assert tree.peek(((100, 104),), 99) == 4


def test_a_shared_run_is_split_where_contents_part() -> None:
    tree = PrefixTree()
    one, _ = tree.extend(tree.root, 0, 8)
    node, length = tree.match(((0, 5), (50, 53)), 99)
    assert length == 5
    tree.lock(node)
    two, new = tree.extend(node, 50, 53)
    assert new == 3
    tree.unlock(one)
    assert tree.num_unused == 3  # blocks 5 to 7 alone are used by nobody
    tree.unlock(two)
    assert tree.num_unused == tree.num_blocks == 11


class ByBlock:
    """Cached sequences of ids and how often each beginning is used, block by block."""

    def __init__(self) -> None:
        self.uses: dict[tuple[int, ...], int] = {}

    def add(self, ids: tuple[int, ...], change: int) -> None:
        for length in range(1, len(ids) + 1):
            self.uses[ids[:length]] = self.uses.get(ids[:length], 0) + change

    def cached(self, ids: tuple[int, ...]) -> int:
        return next((n for n in range(len(ids), 0, -1) if ids[:n] in self.uses), 0)


def as_path(ids: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for number in ids:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return tuple(runs)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_runs_count_as_single_blocks_do(seed: int, steps: int) -> None:
    random, tree, model = Random(seed), PrefixTree(), ByBlock()
    local: list[tuple[tuple[int, ...], Node]] = []
    for _ in range(steps):
        if local and random.random() < 0.4:
            ids, node = local.pop(random.randrange(len(local)))
            tree.unlock(node)
            model.add(ids, -1)
            continue
        ids = tuple(random.choice((i, i, i + 20)) for i in range(random.randint(1, 12)))
        limit = random.randint(0, 12)
        assert tree.peek(as_path(ids), limit) == min(limit, model.cached(ids))
        node, length = tree.match(as_path(ids), limit)
        assert length == min(limit, model.cached(ids))
        tree.lock(node)
        for number in ids[length:]:
            node, _ = tree.extend(node, number, number + 1)
        local.append((ids, node))
        model.add(ids, +1)
        assert tree.num_blocks == len(model.uses)
        assert tree.num_unused == sum(uses == 0 for uses in model.uses.values())
