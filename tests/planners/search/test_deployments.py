"""A search is exact: what brute force by `plan` chooses, with the plan's numbers, and every candidate counted."""

from itertools import product
from typing import Any

import pytest

import l4spec
import planners
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from planners.catalog import shipped_names
from planners.catalog.loader import load
from planners.catalog.prices import ON_DEMAND, PriceList, lowest_offer
from planners.plan_types import Plan
from planners.search.deployments import search_deployments
from planners.search.search_request import SearchRequest

SLOW: dict[str, Any] = {"prompt_tokens": 8192, "output_tokens": 1024, "concurrency": 12}
LEVEL: dict[str, Any] = {"ttft": 0.7, "tpot": 0.02, "max_context": 100_000}
SMALL: dict[str, Any] = {
    "gpus": "4xH100,2xH200",
    "quantization": "fp8,w4a16",
    "kv_dtype": "bf16",
    "engine": "vllm-hybrid",
}


@pytest.fixture(scope="module")
def scout() -> LayerGraph:
    return l4spec.compile(l4spec.load("scout"))


def brute_force(graph: LayerGraph) -> list[tuple[float, int, str, Plan]]:
    """(USD of a request, GPUs, scheme, plan of a replica) of every deployment of the small space that does."""
    doing = []
    for (gpus, most), scheme, size, replicas in product(
        (("H100", 4), ("H200", 2)), ("fp8", "w4a16"), (1, 2, 4), (1, 2, 3, 4)
    ):
        price = lowest_offer({"H100": "h100-sxm", "H200": "h200"}[gpus])
        if size * replicas > most or price is None:
            continue
        for tp, ep in product((1, 2, 4), (1, 2, 4)):
            if size % (tp * ep):
                continue
            options: dict[str, Any] = {
                **SLOW,
                "concurrency": -(-12 // replicas),
                "max_context": LEVEL["max_context"],
                "dp": 1,
            }
            plan = planners.plan(
                graph,
                gpus=f"{size}x{gpus}",
                quantization=scheme,
                engine="vllm-hybrid",
                tp=tp,
                ep=ep,
                usd_per_gpu_hour=price.usd_per_gpu_hour,
                **options,
            )
            time = plan.latency
            assert time is not None
            if not plan.fits or (time.ttft_seconds or 9) > LEVEL["ttft"]:
                continue
            if (time.time_per_output_token_seconds or 9) > LEVEL["tpot"]:
                continue
            there = 12 / (replicas * -(-12 // replicas))  # a replica may have a client fewer than the fullest
            per_second = there * (time.tokens_per_second_per_gpu or 0.0) / SLOW["output_tokens"]
            doing.append((price.usd_per_gpu_hour / 3600 / per_second, size * replicas, scheme, plan))
    return sorted(doing, key=lambda each: each[:2])


def test_a_search_equals_brute_force_by_plans(scout: LayerGraph) -> None:
    answer = search_deployments(scout, SearchRequest(**SMALL, **SLOW, **LEVEL))
    expected = brute_force(scout)
    assert len(expected) > 3
    assert answer.num_meeting == len(expected)
    for ranked, (cost, num_gpus, scheme, plan) in zip(answer.ranked, expected, strict=True):
        assert plan.latency is not None
        assert (ranked.num_gpus, ranked.quantization) == (num_gpus, scheme)
        assert ranked.ttft_seconds == pytest.approx(plan.latency.ttft_seconds)
        per_request = (
            (ranked.usd_per_million_input_tokens or 0) * SLOW["prompt_tokens"]
            + (ranked.usd_per_million_output_tokens or 0) * SLOW["output_tokens"]
        ) / 1e6
        assert per_request == pytest.approx(cost)


def test_every_ranked_deployment_is_what_its_plan_gives(scout: LayerGraph) -> None:
    answer = search_deployments(scout, SearchRequest(gpus="8xH100", quantization="fp8", **SLOW, tpot=0.03))
    assert answer.ranked
    for ranked in answer.ranked[:: max(1, len(answer.ranked) // 12)]:
        plan = planners.plan(scout, **ranked.request)
        assert plan.fits
        assert plan.layout == ranked.layout
        assert plan.latency is not None
        assert plan.latency.ttft_seconds == pytest.approx(ranked.ttft_seconds)
        assert plan.latency.time_per_output_token_seconds == pytest.approx(ranked.time_per_output_token_seconds)
        there = SLOW["concurrency"] / (ranked.replicas * (ranked.concurrency_per_replica or 1))
        assert ranked.tokens_per_second_per_gpu == pytest.approx(there * (plan.latency.tokens_per_second_per_gpu or 0))


@pytest.mark.parametrize("clients", [1, 5, 7, 12])
def test_replicas_are_priced_by_the_clients_that_there_are(scout: LayerGraph, clients: int) -> None:
    """A request's GPU seconds are those of all replicas over the requests of all clients, evenly divided or not."""
    load: dict[str, Any] = {"prompt_tokens": 1000, "output_tokens": 100, "concurrency": clients}
    answer = search_deployments(scout, SearchRequest(gpus="8xH200", quantization="fp8", **load))
    assert clients == 1 or {ranked.replicas for ranked in answer.ranked} > {1}
    for ranked in answer.ranked:
        tokens = clients * ranked.tokens_per_second_per_user
        assert ranked.tokens_per_second_per_gpu * ranked.num_gpus == pytest.approx(tokens)


def test_every_candidate_is_timed_or_ruled_out(scout: LayerGraph) -> None:
    loads: list[dict[str, Any]] = [{}, {"rate": 2.0}, {"concurrency": 7}]
    for options in loads:
        request = SearchRequest(gpus="8xH100,rtx-4090", prompt_tokens=4096, output_tokens=256, most_gpus=4, **options)
        space = search_deployments(scout, request).space
        assert space.candidates == space.pruned + space.timed
        assert space.timed > 0


@pytest.mark.parametrize("level", [{"ttft": 0.1}, {"tpot": 0.005}, {"ttft": 0.1, "tpot": 0.005}, {"budget": 6.0}])
def test_a_limit_loosened_as_advised_is_met_and_a_little_less_is_not(scout: LayerGraph, level: dict[str, Any]) -> None:
    space = {
        **SLOW,
        "gpus": "4xH100",
        "quantization": "fp8",
        "engine": "vllm-hybrid",
        "tp": 4 if len(level) > 1 else None,
    }
    given = {name: value for name, value in space.items() if value is not None}
    answer = search_deployments(scout, SearchRequest(**given, **level))
    if "budget" in level:
        assert answer.num_meeting == 0
    assert not answer.ranked
    words = answer.loosen[0].option.split()
    changed = {
        name.removeprefix("--"): SearchRequest.from_text({name.removeprefix("--"): text})
        for name, text in zip(words[::2], words[1::2], strict=True)
    }
    values = {name: getattr(parsed, name) for name, parsed in changed.items()}
    assert search_deployments(scout, SearchRequest(**given, **{**level, **values})).ranked
    nearly = {name: value * 0.98 for name, value in values.items()}
    assert not search_deployments(scout, SearchRequest(**given, **{**level, **nearly})).ranked


def test_where_nothing_has_room_the_advised_gpus_are_enough_and_one_less_is_not(scout: LayerGraph) -> None:
    asked: dict[str, Any] = {"prompt_tokens": 2048, "output_tokens": 256, "concurrency": 1, "quantization": "w4a16"}
    (advice,) = search_deployments(scout, SearchRequest(gpus="1xL40S", **asked)).loosen
    words, _, gpus = advice.option.partition(" ")
    assert (words, advice.limits) == ("--gpus", ("--gpus",))
    number, _, name = gpus.partition("x")
    assert search_deployments(scout, SearchRequest(gpus=gpus, **asked)).ranked
    assert not search_deployments(scout, SearchRequest(gpus=f"{int(number) - 1}x{name}", **asked)).ranked


def test_where_a_sequence_is_too_long_the_advised_one_has_room(scout: LayerGraph) -> None:
    asked: dict[str, Any] = {"gpus": "1xH100", "quantization": "w4a16", "kv_dtype": "bf16", "engine": "vllm-hybrid"}
    asked |= {**SLOW, "concurrency": 1}
    (advice,) = search_deployments(scout, SearchRequest(**asked, max_context=1_000_000)).loosen
    longest = int(advice.option.removeprefix("--max-context "))
    assert search_deployments(scout, SearchRequest(**asked, max_context=longest)).ranked
    assert not search_deployments(scout, SearchRequest(**asked, max_context=longest + 1)).ranked


def test_nothing_beats_a_point_of_the_front_in_both(scout: LayerGraph) -> None:
    answer = search_deployments(scout, SearchRequest(gpus="8xH100", **SLOW))
    assert len(answer.front) > 3
    for point in answer.front:
        for ranked in answer.ranked:
            more = ranked.tokens_per_second_per_user > point.tokens_per_second_per_user
            assert not (more and ranked.tokens_per_second_per_gpu > point.tokens_per_second_per_gpu)


def test_what_binds_a_loser_is_named_and_no_winner_is_a_loser(scout: LayerGraph) -> None:
    request = SearchRequest(gpus="4xH100,2xrtx-4090,1xm3-ultra,1xMI300X", **SLOW, ttft=0.5)
    answer = search_deployments(scout, request)
    bounds = {(each.hardware, each.engine): each.bound_by for each in answer.losers}
    assert bounds["m3-ultra", "vllm-hybrid"] == "no_engine"
    assert bounds["mi300x", "tensorrt-llm"] == "no_engine"
    assert bounds["rtx-4090", "vllm-hybrid"] == "memory"
    assert "ttft" in {each.bound_by for each in answer.losers}
    kinds = {(r.hardware, r.gpus_per_replica, r.quantization, r.kv_dtype, r.engine) for r in answer.ranked}
    assert not kinds & {(x.hardware, x.gpus_per_replica, x.quantization, x.kv_dtype, x.engine) for x in answer.losers}


def test_without_a_price_hardware_ranks_last_and_its_cost_is_unknown(scout: LayerGraph) -> None:
    request = SearchRequest(gpus="8xH100", **SLOW, usd_per_gpu_hour=2.0)
    best = search_deployments(scout, request).ranked[0]
    assert best.usd_per_hour == pytest.approx(2.0 * best.num_gpus)
    assert lowest_offer("m3-ultra") is None


def test_what_a_search_chooses_itself_is_refused() -> None:
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    with pytest.raises(UserError) as error:
        search_deployments(graph, SearchRequest(batch=4, dp=2, context=100))
    assert {problem.path for problem in error.value.problems} == {
        "prompt_tokens",
        "output_tokens",
        "batch",
        "dp",
        "context",
    }


def test_every_price_names_hardware_of_the_catalogue_and_its_source() -> None:
    offers = load("prices", PriceList, ON_DEMAND).offers
    assert {offer.hardware for offer in offers} <= set(shipped_names("hardware"))
    assert len(offers) >= 15
    assert all(offer.date.year >= 2026 and " " in offer.source for offer in offers)
