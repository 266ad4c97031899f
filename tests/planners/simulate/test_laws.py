"""Laws of the engine loop, whatever arrives: blocks are conserved, tokens come out, nobody starves, seeds decide."""

from random import Random
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.simulate.cache.law import CacheLaw, LocalGroups
from planners.simulate.engines.sglang import SglangPolicy
from planners.simulate.engines.tensorrt_llm import TensorRtLlmPolicy
from planners.simulate.requests import Request
from planners.simulate.routers import LeastLoaded, PrefixAware, RoundRobin
from planners.simulate.times.interface import ConstantStepTimes
from tests.planners.simulate.servers import bench, request

LAWS = (
    CacheLaw(16),
    CacheLaw(4, 1, (LocalGroups(3, "chunk", 64),)),
    CacheLaw(4, 1, (LocalGroups(2, "window", 40),)),
    CacheLaw(8, 2, (), 1),
)


@st.composite
def loads(draw: st.DrawFn, most: int = 40) -> list[Request]:
    """Requests that arrive close together, some with equal beginnings."""
    random = Random(draw(st.integers(0, 2**32)))
    groups = draw(st.integers(1, 4))
    result, now = [], 0.0
    for number in range(draw(st.integers(1, most))):
        now += random.expovariate(draw(st.sampled_from([5.0, 50.0])))
        made = request(number, now, random.randint(1, 300), random.randint(1, 80), random.randint(0, 1))
        shared = random.randint(0, made.prompt // 16)
        if shared:
            group = random.randrange(groups) << 20
            rest = made.tail + made.prompt // 16 - shared
            runs = ((group, group + shared), (made.tail, rest))
            made.path = tuple(run for run in runs if run[1] > run[0])
            made.path_blocks, made.tail = made.prompt // 16, rest
        result.append(made)
    return result


@settings(max_examples=60, deadline=None)
@given(loads(), st.sampled_from(LAWS), st.booleans(), st.sampled_from(["fcfs", "priority"]), st.integers(1, 3))
def test_blocks_are_conserved_and_every_token_comes_out(
    load: list[Request], law: CacheLaw, caching: bool, order: str, ranks: int
) -> None:
    for made in load if law.block_size != 16 else ():
        made.path, made.path_blocks = (), 0
    blocks = 8 * law.kept_blocks(380)
    served = bench(blocks=blocks, law=law, ranks=ranks, prefix_caching=caching, order=order)
    done = served.run(load)
    assert all(made.outcome == "finished" for made in done)
    assert all(made.generated == made.output for made in done)
    assert all(made.arrival < made.first_token_at <= made.last_token_at for made in done)
    ranks_of = [rank for replica in served.cluster.replicas for rank in replica.ranks]
    if not caching:
        assert sum(rank.hit_tokens for rank in ranks_of) == 0


SGLANG: dict[str, Any] = {
    "new_token_ratio": 0.7,
    "min_new_token_ratio": 0.098,
    "new_token_ratio_steps": 600,
    "retract_steps": 20,
    "most_new_tokens_counted": 4096,
    "longest_sorted_queue": 128,
}


@settings(max_examples=40, deadline=None)
@given(loads(), st.sampled_from(["fcfs", "priority", "longest_prefix"]), st.integers(30, 80))
def test_sglang_serves_every_request_with_the_blocks_it_has(load: list[Request], order: str, blocks: int) -> None:
    done = bench(blocks=blocks, policy=SglangPolicy, order=order, **SGLANG).run(load)
    assert all(made.outcome == "finished" and made.generated == made.output for made in done)


@settings(max_examples=40, deadline=None)
@given(loads(), st.booleans(), st.integers(30, 80))
def test_tensorrt_llm_evicts_nobody_unless_it_may(load: list[Request], may: bool, blocks: int) -> None:
    overbooking = "max_utilization" if may else "guaranteed_no_evict"
    done = bench(blocks=blocks, policy=TensorRtLlmPolicy, overbooking=overbooking, chunked_prefill=False).run(load)
    assert all(made.outcome == "finished" and made.generated == made.output for made in done)
    assert may or not any(made.preemptions for made in done)


@settings(max_examples=30, deadline=None)
@given(loads())
def test_no_request_starves_under_fcfs(load: list[Request]) -> None:
    for made in load:
        made.priority = 0
    done = bench(blocks=120).run(load)
    order = sorted(done, key=lambda made: (made.arrival, made.number))
    starts = [made.scheduled_at for made in order]
    assert starts == sorted(starts)


@settings(max_examples=30, deadline=None)
@given(loads(), st.sampled_from([RoundRobin, LeastLoaded, PrefixAware]))
def test_the_same_requests_give_the_same_times(load: list[Request], router: type[RoundRobin]) -> None:
    def run() -> list[tuple[int, int, int, int]]:
        copies = [
            Request(r.number, r.arrival, r.prompt, r.output, r.path, r.path_blocks, r.tail, r.priority) for r in load
        ]
        served = bench(blocks=200, replicas=2, router=router())
        return [(r.scheduled_at, r.first_token_at, r.last_token_at, r.preemptions) for r in served.run(copies)]

    first = run()
    assert first == run()


@pytest.mark.parametrize("router", [RoundRobin, LeastLoaded])
def test_more_replicas_never_raise_the_mean_latency(router: type[RoundRobin]) -> None:
    means = []
    for replicas in (1, 2, 4, 8):
        random, now, load = Random(7), 0.0, []
        for number in range(400):
            now += random.expovariate(30)
            load.append(request(number, now, random.randint(1, 400), random.randint(1, 100)))
        means.append(fmean(r.e2e for r in bench(blocks=400, replicas=replicas, router=router()).run(load)))
    assert means == sorted(means, reverse=True)


def test_priorities_go_first_and_are_preempted_last() -> None:
    load = [request(number, 0.001 * number, 100, 200, priority=number % 2) for number in range(20)]
    done = bench(blocks=60, order="priority").run(load)
    urgent, others = [r.e2e for r in done if r.priority == 0], [r.e2e for r in done if r.priority == 1]
    assert max(urgent) < max(others)
    assert fmean(urgent) < fmean(others)
    assert sum(r.preemptions for r in done if r.priority == 0) <= sum(r.preemptions for r in done if r.priority == 1)


def queue(utilization: float, count: int, service: float = 0.010) -> list[Request]:
    """Requests of one step each that arrive at random and are served one by one."""
    random, now = Random(11), 0.0
    load = []
    for number in range(count):
        now += random.expovariate(utilization / service)
        load.append(request(number, now, 1, 1))
    served = bench(times=ConstantStepTimes(service), max_num_seqs=1, max_num_batched_tokens=1, prefix_caching=False)
    return served.run(load)


def test_single_steps_of_fixed_time_wait_as_lindley_says_to_the_nanosecond() -> None:
    """W(n+1) = max(0, W(n) + service - gap): the waiting times of any queue with one server."""
    done, waiting, before = queue(0.8, 3000), 0, 0
    for made in done:
        waiting = max(0, waiting + (10_000_000 if made.number else 0) - (made.arrival - before))
        assert made.scheduled_at - made.arrival == waiting
        before = made.arrival


@pytest.mark.slow
@pytest.mark.parametrize("utilization", [0.5, 0.8])
def test_single_steps_of_fixed_time_wait_as_an_m_d_1_queue_says(utilization: float) -> None:
    """W = rho D / (2 (1 - rho)), Pollaczek-Khinchine for deterministic service; batch means give the standard error."""
    service, count, batches = 0.010, 200_000, 100
    done = queue(utilization, count, service)
    waits = [(r.scheduled_at - r.arrival) / 1e9 for r in done]
    size = count // batches
    means = [fmean(waits[i * size : (i + 1) * size]) for i in range(1, batches)]  # the first one warms up
    expected = utilization * service / (2 * (1 - utilization))
    error = stdev(means) / len(means) ** 0.5
    assert abs(fmean(means) - expected) < 3 * error
    assert abs(fmean(means) - expected) < 0.02 * expected


def test_a_run_of_steps_is_cut_at_the_step_in_which_a_request_arrives() -> None:
    """An arrival in the middle of a long run of decodes is admitted at the next step's end, not at the run's."""
    late = request(1, 0.0555, 10, 5)
    bench(times=ConstantStepTimes(0.010), prefix_caching=False).run([request(0, 0.0, 10, 300), late])
    assert late.scheduled_at == 60_000_000
    assert late.first_token_at == 70_000_000
