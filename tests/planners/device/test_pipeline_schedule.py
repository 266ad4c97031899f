"""Interleaved pipelines: what stages keep against papers' formulas and a walk through the schedule."""

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.sharding.rules import chunks_of_stages, split_layers
from planners.device.pipeline_schedule import most_kept

STAGES = st.integers(2, 6)
CHUNKS = st.integers(1, 5)


def walked(chunks: tuple[int, ...], pp: int, stage: int, micro_batches: int) -> int:
    """Most kept by the schedule pass by pass, each named by its micro-batch: Megatron-LM's, of groups of pp."""
    order = [
        (chunk, batch)
        for first in range(0, micro_batches, pp)
        for chunk in range(len(chunks))
        for batch in range(first, first + pp)
    ]
    backward = [(len(chunks) - 1 - chunk, batch) for chunk, batch in order]
    before = min(2 * (pp - 1 - stage) + (len(chunks) - 1) * pp, len(order))
    passes = [(True, each) for each in order[:before]]
    for done, each in enumerate(backward):
        if before + done < len(order):
            passes.append((True, order[before + done]))
        passes.append((False, each))
    kept: set[tuple[int, int]] = set()
    most = 0
    for is_forward, each in passes:
        if is_forward:
            kept.add(each)
            most = max(most, sum(chunks[chunk] for chunk, _ in kept))
        else:
            kept.remove(each)
    assert not kept
    return most


@given(STAGES, st.integers(2, 5), st.integers(2, 4), st.data())
def test_a_stage_keeps_what_a_walk_through_the_schedule_keeps(
    pp: int, v: int, rounds: int, data: st.DataObject
) -> None:
    chunks = tuple(data.draw(st.lists(st.integers(0, 9), min_size=v, max_size=v)))
    for stage in range(pp):
        assert most_kept(chunks, pp, stage, rounds * pp) == walked(chunks, pp, stage, rounds * pp)


@pytest.mark.parametrize(("pp", "v"), [(4, 2), (8, 3), (35, 3), (64, 1)])
def test_the_first_stage_keeps_the_published_factor_more(pp: int, v: int) -> None:
    """arXiv:2205.05198, section 4.2.3: interleaving scales the memory of activations by 1 + (p - 1) / (p m)."""
    plain, interleaved = (most_kept((1,) * n, pp, 0, 4 * pp) for n in (1, v))
    factor = 1 + (pp - 1) / (pp * v) if v > 1 else 1
    assert plain == pp
    assert interleaved / v == pytest.approx(pp * factor)


def test_four_stages_of_two_chunks_are_those_of_the_paper() -> None:
    """arXiv:2104.04473, figure 4, below: the first device runs eleven forward passes before a backward one."""
    assert [most_kept((1, 1), 4, stage, 8) for stage in range(4)] == [11, 9, 7, 5]


@given(st.integers(1, 200), STAGES, CHUNKS)
def test_chunks_of_all_stages_are_all_layers_and_each_goes_on_at_the_next_stage(layers: int, pp: int, v: int) -> None:
    if layers < pp * v:
        return
    stages = chunks_of_stages(layers, pp, v)
    everything = chain.from_iterable(chain.from_iterable(stages))
    assert Counter(everything) == Counter(range(layers))
    in_turn = [stages[run % pp][run // pp] for run in range(pp * v)]
    assert tuple(in_turn) == split_layers(layers, pp * v)
    assert max(map(len, in_turn)) - min(map(len, in_turn)) <= 1


@given(STAGES, st.integers(1, 40))
def test_fewer_micro_batches_than_stages_are_all_in_flight(pp: int, micro_batches: int) -> None:
    for stage in range(pp):
        assert most_kept((7,), pp, stage, micro_batches) == 7 * min(pp - stage, micro_batches)
