"""A search of training gives what planning every candidate gives, and its proofs rule out none that would do."""

from itertools import product
from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.options import option_of
from planners.clusters.training_search import search_training
from planners.clusters.training_search_types import TrainingSearchAnswer
from planners.plan import plan
from planners.search.search_request import SearchRequest
from tests.planners.models import graph

ASKED: dict[str, Any] = {"mode": "train", "train_tokens": 10**12, "deadline": "20d"}


def searched(spec: str = "llama-3.1-8b", **options: Any) -> TrainingSearchAnswer:
    return search_training(graph(spec), SearchRequest(**{**ASKED, "gpus": "96xH100,64xA100", **options}))


@pytest.mark.parametrize("spec", ["llama-3.1-8b", "olmoe-1b-7b"])
def test_the_answer_is_that_of_planning_everything(spec: str) -> None:
    answer = searched(spec)
    every = {}
    for (name, most), precision in product({"H100": 96, "A100": 64}.items(), ("bf16", "fp8")):
        for number in {1, 2, 4, 8, 16, 32, 64, most}:
            planned = plan(graph(spec), gpus=f"{number}x{name}", mode="train", precision=precision, train_tokens=10**12)
            hours = planned.latency.gpu_hours if planned.latency and planned.fits else None
            if hours is not None and hours / number / 24 <= 20:
                assert planned.cluster is not None
                every[planned.cluster.hardware, number, precision] = hours
    assert {(r.hardware, r.num_gpus, r.precision): r.gpu_hours for r in answer.ranked} == every
    assert len(every) > 2
    assert [r.usd for r in answer.ranked] == sorted(r.usd or 0 for r in answer.ranked)
    assert answer.space.candidates == len(answer.ranked) + len(answer.losers)
    assert answer.space.pruned > 0


def test_a_ranked_cluster_is_what_its_plan_gives() -> None:
    answer = searched()
    best = answer.ranked[0]
    planned = plan(graph("llama-3.1-8b"), **best.request)
    assert planned.layout == best.layout
    assert planned.latency is not None
    assert (planned.latency.gpu_hours, planned.latency.usd) == (best.gpu_hours, best.usd)
    assert answer.errors == tuple(planned.latency.errors) != ()
    assert best.days == pytest.approx(best.gpu_hours / best.num_gpus / 24)


def test_the_front_is_what_nothing_beats_in_time_and_price() -> None:
    answer = searched(deadline="300d")
    for each in answer.ranked:
        here = (each.days, each.usd or 0.0)
        others = [(other.days, other.usd or 0.0) for other in answer.ranked]
        beaten = any(days <= here[0] and usd <= here[1] and (days, usd) != here for days, usd in others)
        twin = any((other.days, other.usd) == here and other.rank < each.rank for other in answer.ranked)
        assert each.on_front != (beaten or twin)


@pytest.mark.parametrize(
    "options", [{"deadline": "1h"}, {"deadline": "4d", "gpus": "64xH100"}, {"budget": 1.0}, {"budget": 50.0}]
)
def test_the_limit_to_loosen_is_enough_and_a_tenth_less_is_not(options: dict[str, Any]) -> None:
    """`--deadline` is rounded up to whole days."""
    answer = searched(**options)
    assert not answer.ranked
    words = answer.loosen[0].option.split()
    values = dict(zip(words[::2], words[1::2], strict=True))
    level = {name.removeprefix("--"): value for name, value in values.items()}
    assert searched(**options | level).ranked
    for name, value in level.items():
        less = f"{float(value.removesuffix('d')) * 0.9 - (1 if name == 'deadline' else 0)}"
        if float(less) > 0:
            assert not searched(**options | level | {name: less + ("d" if name == "deadline" else "")}).ranked


def test_what_no_cluster_holds_is_said_with_its_memory() -> None:
    answer = searched("scout", gpus="8xH100")
    assert not answer.ranked
    assert {loser.bound_by for loser in answer.losers} == {"memory"}
    assert "GiB" in answer.loosen[0].why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_tokens": None}, "as --tokens 15T"),
        ({"deadline": None}, "as --deadline 30d"),
        ({"ttft": "1s"}, "ttft: plays no part in training"),
        ({"concurrency": 4}, "concurrency: plays no part in training"),
        ({"objective": "fastest"}, "objective: a search ranks by price"),
        (
            {"mode": "serve", "prompt_tokens": 9, "output_tokens": 9, "train_tokens": None},
            "deadline: needs --mode train",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        searched(**options)


OF_SERVING: dict[str, Any] = {
    "quantization": "fp8",
    "kv_dtype": "fp8",
    "engine": "vllm",
    "prompt_tokens": 100,
    "output_tokens": 10,
    "max_context": 4096,
    "concurrency": 4,
    "rate": 1.0,
    "num_tiles": 1,
    "images": 1,
    "video": "10s",
    "fps": 1.0,
    "frames": 4,
    "frame_size": "336x336",
    "prefill_chunk": 512,
    "max_num_seqs": 8,
    "routing": "power_law:1.2",
    "host_memory": "100GB",
    "host_bandwidth": "100GB/s",
    "on_host": "layers",
    "draft_acceptance": "0.8",
    "factors": "factors.yaml",
    "ttft": "1s",
    "tpot": "10ms",
}


def test_every_option_of_serving_is_refused_by_name_in_a_search_of_training() -> None:
    """None is ignored: with any of them the cheapest cluster would be that of a search without it."""
    serving = {n for n in SearchRequest.model_fields if option_of(SearchRequest, n).mode == "serve"}
    assert serving | {"ttft", "tpot"} == set(OF_SERVING)
    for name, value in OF_SERVING.items():
        with pytest.raises(UserError, match=f"{name}: "):
            searched(**{name: value})
