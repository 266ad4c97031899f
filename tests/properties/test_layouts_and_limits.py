"""Laws of searches over random models on a small device: limits are exact, choices are the best, suggestions hold."""

import shlex
from typing import Any, get_args

from hypothesis import assume, given, reject
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout, candidate_layouts
from l4spec.sharding.rules import illegal_reason
from planners.catalog import engine, hardware, quantization
from planners.counts.weights import scheme_of
from planners.device.memory import Placement, Setting, place
from planners.plan import plan
from planners.plan_types import Objective, Plan
from planners.request import max_seq_len
from planners.search.layouts import MAX_BATCH, largest, max_batch, max_context
from tests.strategies import graphs

DEVICE = "rtx-4090"
USABLE = hardware(DEVICE).usable.num_bytes


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_largest_is_found_wherever_it_is(answer: int, limit: int) -> None:
    assert largest(lambda n: answer - n, limit) == min(answer, limit)
    assert largest(lambda n: 0 if n <= answer else -1, limit) == min(answer, limit)


@given(st.integers(0, 1 << 20), st.sampled_from([(1, 1), (16, 1), (1, 7), (400, 3)]), st.integers(0, 1 << 30))
def test_the_largest_takes_few_questions(answer: int, law: tuple[int, int], kink: int) -> None:
    """Whatever the memory that grows with n is like: in blocks, per rank, or faster from some point on."""
    block, ranks = law
    asked = []

    def used(n: int) -> int:
        return -(-n // ranks) // block * block + max(0, n - kink)

    def room(n: int) -> int:
        asked.append(n)
        return used(answer) - used(n)

    most = largest(room, 1 << 20)
    assert most == max(
        (n for n in range(answer, min(answer + 2 * block * ranks, 1 << 20) + 1) if room(n) >= 0), default=0
    )
    assert len(asked) <= 3 * 20 + 2 + 2 * block * ranks + 1


def squeezed(graph: LayerGraph, room: Placement, context: int, batch: int, name: str) -> Placement:
    """The same placement on a device with just enough memory for `batch` sequences of `context` tokens."""
    fraction = (room.tightest(context, batch).total + 1) / USABLE
    scheme = scheme_of(quantization("bf16"))
    return place(Setting(graph, scheme, engine(name), hardware(DEVICE), 2, fraction, 64), room.layout)


@given(graphs(), st.data())
def test_one_token_more_or_one_sequence_more_than_the_limit_does_not_fit(
    graph: LayerGraph, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["ideal", "full", "llama.cpp"]))
    context, batch = data.draw(st.integers(1, max_seq_len(graph))), data.draw(st.integers(1, 9))
    layout = Layout(pp=data.draw(st.integers(1, min(graph.num_layers, 3))), dp=data.draw(st.integers(1, 3)))
    room = place(Setting(graph, scheme_of(quantization("bf16")), engine(name), None, 2, None, 64), layout)
    tight = squeezed(graph, room, context, batch, name)
    longest, most = max_context(tight, batch), max_batch(tight, context)
    assert longest >= context
    assert most >= batch
    assert tight.fits(longest, batch)
    assert tight.fits(context, most)
    assert longest == max_seq_len(graph) or not tight.fits(longest + 1, batch)
    assert most == MAX_BATCH or not tight.fits(context, most + 1)


def arguments_of(command: str) -> dict[str, Any]:
    """The keyword arguments of `plan` that a suggestion's options stand for."""
    words = shlex.split(command)
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    return {name: int(value) if value.isdigit() else value for name, value in zip(names, words[1::2], strict=True)}


def replanned(graph: LayerGraph, command: str, **exact: Any) -> Plan:
    return plan(graph, **(arguments_of(command) | exact))


@given(graphs(), st.data())
def test_every_suggestion_fits_when_it_is_planned_as_it_says(graph: LayerGraph, data: st.DataObject) -> None:
    context, batch = data.draw(st.integers(1, max_seq_len(graph))), data.draw(st.integers(1, 64))
    alone = plan(graph, context=context, batch=batch)
    share = data.draw(st.floats(0.3, 0.99)) * alone.memory_per_device.total_bytes / USABLE
    tight = plan(graph, gpus=f"1x{DEVICE}", context=context, batch=batch, memory_fraction=share)
    assume(not tight.fits)
    for suggestion in tight.suggestions:
        again = replanned(graph, suggestion.command, memory_fraction=share)
        assert again.fits
        rows = [row for row in again.layouts if row.fits]
        assert min(row.total_bytes for row in rows) == suggestion.total_bytes
        assert suggestion.max_context in {row.max_context for row in rows}


def planned_on(graph: LayerGraph, num_gpus: int, **asked: Any) -> Plan:
    """The plan on so many devices; a model that no layout of them can run has none, and another one is drawn."""
    try:
        return plan(graph, gpus=f"{num_gpus}x{DEVICE}", **asked)
    except UserError:
        if not all(illegal_reason(graph, layout) for layout in candidate_layouts(num_gpus)):
            raise
        reject()


@given(graphs(), st.sampled_from([1, 2, 3, 4, 6, 8]), st.data())
def test_the_chosen_layout_is_legal_uses_every_gpu_and_is_best_by_its_objective(
    graph: LayerGraph, num_gpus: int, data: st.DataObject
) -> None:
    fraction = data.draw(st.floats(1e-7, 1e-2))
    for objective in get_args(Objective):
        planned = planned_on(graph, num_gpus, objective=objective, memory_fraction=fraction)
        row = next(row for row in planned.layouts if row.layout == planned.layout)
        assert {row.layout.num_devices for row in planned.layouts} == {num_gpus}
        assert planned.fits == any(row.fits for row in planned.layouts)
        assert (planned.max_context, planned.max_batch) == (row.max_context, row.max_batch)
        if objective == "max-context":
            assert row.max_context == max(other.max_context for other in planned.layouts)
        if objective == "min-gpus" and planned.fits:
            assert row.layout.dp == max(other.layout.dp for other in planned.layouts if other.fits)


@given(graphs(), st.sampled_from([2, 4, 6, 8]))
def test_every_way_to_write_the_number_of_gpus_is_listed_legal_or_with_its_reason(
    graph: LayerGraph, num_gpus: int
) -> None:
    planned = planned_on(graph, num_gpus)
    legal, illegal = {row.layout for row in planned.layouts}, {row.layout for row in planned.illegal_layouts}
    ways = {
        (tp, ep, pp, num_gpus // (tp * ep * pp))
        for tp in range(1, num_gpus + 1)
        for ep in range(1, num_gpus + 1)
        for pp in range(1, num_gpus + 1)
        if num_gpus % (tp * ep * pp) == 0
    }
    assert {(x.tp, x.ep, x.pp, x.dp) for x in legal | illegal} == ways
    assert not legal & illegal
    assert all(row.reason for row in planned.illegal_layouts)
