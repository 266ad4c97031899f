"""Context parallelism in a plan: how a sequence is cut, what a device keeps and sends of it, and what is refused."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.deploy import EMITTERS, LaunchRequest, emit
from l4spec.errors import UserError
from l4spec.sharding.layout import MESH_ORDER, Layout, candidate_layouts, place_of
from l4spec.sharding.sequence import chunk_of, longest_run, runs_of, short_reason
from planners.collectives.communication import communication
from planners.plan import plan
from planners.plan_types import Plan
from tests.planners.models import graph

SCOUT_CHUNK, SCOUT_GLOBAL, SCOUT_KEPT = 8192, 12, 2 * 1024 * 2  # tokens; layers; bytes of a token's keys and values


def planned(cp: int | None, context: int, **others: object) -> Plan:
    return plan(graph("scout"), context=context, cp=cp, **others)


@given(st.integers(1, 400), st.integers(1, 9), st.sampled_from([1, 3, 16]))
def test_runs_cover_a_sequence_in_whole_chunks_as_evenly_as_they_can(num_tokens: int, cp: int, chunk: int) -> None:
    sizes = [f"text.parts.local.mask.size={chunk}"]
    model = graph("tiny/scout", *sizes)
    runs = runs_of(model, num_tokens, cp)
    assert chunk_of(model) == chunk
    assert [token for run in runs for token in run] == list(range(num_tokens))
    assert all(run.start % chunk == 0 for run in runs if run)
    chunks = [-(-len(run) // chunk) for run in runs]
    assert max(chunks) - min(chunks) <= 1
    assert all(first >= second for first, second in pairwise(chunks))
    assert max(map(len, runs)) == len(runs[0]) == longest_run(model, num_tokens, cp)
    assert all(runs) == (short_reason(model, cp, num_tokens) is None)


def test_chunks_of_several_sizes_stay_whole_together() -> None:
    model = graph(
        "tiny/scout",
        "text.parts.other={kind: gqa, num_heads: 2, num_kv_heads: 2, head_dim: 8, position: {kind: none}, "
        "mask: {kind: chunked, size: 24}}",
        "text.layers=[{attention: local, ffn: moe}, {attention: other, ffn: moe}]",
    )
    assert chunk_of(model) == 48
    assert chunk_of(graph("tiny/deepseek")) == 1


def test_context_parallel_neighbours_stand_between_tensor_and_expert_parallel_ones() -> None:
    layout = Layout(tp=2, cp=3, ep=2, dp=2)
    assert layout.num_devices == 24
    assert str(layout) == "tp2 ep2 pp1 dp2 cp3"
    assert str(Layout(tp=2)) == "tp2 ep1 pp1 dp1"
    places = [place_of(layout, rank) for rank in range(24)]
    assert places == sorted(places)
    assert len(set(places)) == 24
    assert (places[1].tp, places[2].cp, places[6].ep, MESH_ORDER[-2:]) == (1, 1, 1, ("cp", "tp"))


def test_no_layout_divides_sequences_unless_asked_to() -> None:
    assert {layout.cp for layout in candidate_layouts(16)} == {1}
    assert {(layout.cp, layout.num_devices) for layout in candidate_layouts(16, 4)} == {(4, 16)}
    assert candidate_layouts(16, 3) == ()
    assert {row.layout.cp for row in planned(2, 100_000, gpus="16xH100").layouts} == {2}


def test_a_device_keeps_its_run_of_the_cache() -> None:
    """Global layers a quarter of the tokens, local ones a chunk as ever."""
    context = 32 * SCOUT_CHUNK
    whole, quarter = (planned(cp, context).memory_per_device.kv_cache_bytes for cp in (None, 4))
    chunks = 36 * SCOUT_CHUNK * SCOUT_KEPT
    assert whole == SCOUT_GLOBAL * context * SCOUT_KEPT + chunks
    assert quarter == SCOUT_GLOBAL * context // 4 * SCOUT_KEPT + chunks


def test_activations_are_those_of_the_run() -> None:
    one, four = (planned(cp, 64 * SCOUT_CHUNK, prefill_chunk=1 << 30).memory_per_device for cp in (None, 4))
    assert one.activation_bytes / 4 < four.activation_bytes < one.activation_bytes / 2
    assert planned(4, 64 * SCOUT_CHUNK).memory_per_device == four  # not chunk by chunk


@pytest.mark.parametrize("cp", [2, 4, 8])
@pytest.mark.parametrize("tp", [1, 8])
def test_global_layers_pass_on_what_earlier_ranks_keep(cp: int, tp: int) -> None:
    context = 64 * SCOUT_CHUNK
    (row,) = (row for row in communication(graph("scout"), Layout(tp=tp, cp=cp), context=context) if row.axis == "cp")
    assert row.collective == "send"
    assert row.bytes_per_sequence == SCOUT_GLOBAL * (context - context // cp) * SCOUT_KEPT // tp
    assert row.bytes_per_token == (cp - 1) * SCOUT_GLOBAL * SCOUT_KEPT // tp


def test_windows_pass_on_no_more_than_they_reach_back() -> None:
    window = graph("tiny/scout", "text.parts.local.mask={kind: sliding_window, size: 9}")
    (row,) = communication(window, Layout(cp=4), context=100)
    kept = 2 * 16 * 2  # bytes of a token's keys and values
    assert row.bytes_per_sequence == (3 * 8 + 75) * kept
    assert row.bytes_per_token == -(-(3 * 8 + 75) * kept // 25)
    (short,) = communication(window, Layout(cp=4), context=5)  # runs of 2, 1, 1 and 1: windows reach over several ranks
    assert short.bytes_per_sequence == (3 * 4 + 4) * kept


def test_latents_travel_not_the_keys_made_of_them() -> None:
    (row,) = communication(graph("tiny/deepseek"), Layout(cp=2), context=100)
    assert row.bytes_per_sequence == 4 * 50 * (16 + 8) * 2


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("scout", {"cp": 2}, "cp=2 cuts sequences between chunks of 8,192 tokens, one or more to a rank"),
        ("scout", {"cp": 4, "context": 3 * SCOUT_CHUNK}, r"need 24,577 tokens or more, found 24,576"),
        ("tiny/deepseek", {"cp": 8, "context": 7}, "cp=8 leaves ranks without tokens: a sequence has 7"),
        ("scout", {"cp": 2, "pp": 2, "context": 10**5}, "the stages of a pipeline run whole sequences"),
        ("scout", {"cp": 2, "context": 10**5, "output_tokens": 9}, "is for prefills, and decoding continues"),
        ("scout", {"cp": 0}, "expected 1 to"),
        ("scout", {"cp": 3, "gpus": "8xH100"}, "x cp=3 = 3 devices do not divide the 8 GPUs"),
        ("scout", {"cp": 2, "gpus": "8xH100"}, "no layout on 8xh100-sxm is legal: cp=2 cuts sequences between chunks"),
    ],
)
def test_what_context_parallelism_cannot_do_is_refused_with_the_reason(
    name: str, arguments: dict[str, object], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        plan(graph(name), **arguments)


def test_neighbours_along_cp_share_a_host_once_tensor_parallel_ones_do() -> None:
    """Of 8 GPUs per host holds tp 2 x cp 4; of 4 it holds pairs along cp, and the second of three hops leaves it."""
    whole, halves = (
        next(row for row in communication(graph("scout"), Layout(tp=2, cp=4, dp=2), size, 10**6) if row.axis == "cp")
        for size in (8, 4)
    )
    assert whole.inter_host_bytes_per_token == 0
    assert halves.inter_host_bytes_per_token == round(halves.bytes_per_token / 3)


def test_no_engine_is_asked_to_divide_sequences() -> None:
    result = planned(4, 10**6, gpus="32xH100", tp=8)
    for engine in (*EMITTERS, "k8s"):
        with pytest.raises(UserError, match="divides sequences among ranks for their prefill alone"):
            emit(engine, LaunchRequest(result, graph("scout")))


def test_what_sees_later_tokens_is_not_divided() -> None:
    both_ways = graph("tiny/scout", "text.parts.global.mask={kind: none}")
    with pytest.raises(UserError, match=r"text\.layers\.3\.attention sees every token"):
        plan(both_ways, cp=2, context=100)


def test_the_longest_context_of_divided_sequences_fits_and_no_longer_one() -> None:
    result = planned(4, 10**6, gpus="32xH100", tp=8)
    assert result.fits
    assert result.latency is not None
    assert result.latency.reason is not None
    longest = result.max_context or 0
    for context, fits in ((longest, True), (longest + 1, False)):
        assert planned(4, context, gpus="32xH100", tp=8).fits is fits


def test_suggestions_keep_dividing_sequences() -> None:
    result = planned(4, 10**6, gpus="4xH100")
    assert not result.fits
    assert result.suggestions
    assert all("--cp 4" in suggestion.command for suggestion in result.suggestions)
