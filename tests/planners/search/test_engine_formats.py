"""A search takes an engine and a format together only where the engine reads it: what wins can be launched."""

import pytest

import l4spec
import planners
from l4spec.deploy import LaunchRequest, emit
from l4spec.deploy.checkpoints import known_checkpoints
from l4spec.errors import UserError
from l4spec.quantization.scheme import SCHEMES
from planners.catalog.engine_formats import PUBLISHED, unreadable
from planners.search.deployments import search_deployments
from planners.search.search_request import SearchRequest


def test_schemes_of_published_checkpoints_are_read_by_the_engines_that_serve_them() -> None:
    released = {each.scheme for checkpoints in known_checkpoints().values() for each in checkpoints}
    assert released == {"bf16", *PUBLISHED}
    assert {unreadable(engine, scheme, "bf16") for engine in ("vllm", "sglang") for scheme in released} == {None}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_a_launch_refuses_exactly_the_schemes_that_a_search_rules_out(engine: str) -> None:
    graph = l4spec.compile(l4spec.load("scout", ["name=mine"]))
    schemes = set(SCHEMES.names) - set(PUBLISHED)
    refused = set()
    for scheme in schemes:
        plan = planners.plan(graph, gpus="8xH200", tp=8, quantization=scheme)
        try:
            emit(engine, LaunchRequest(plan, graph, model="me/mine"))
        except UserError as error:
            refused |= {scheme} if "reads no weights packed" in str(error) else set()
    assert refused == {scheme for scheme in schemes if unreadable(engine, scheme, "bf16")}


def test_what_a_model_is_published_in_and_own_schemes_are_read() -> None:
    assert unreadable("tensorrt-llm", "w4a16", "bf16") == "tensorrt-llm reads no weights packed as w4a16"
    assert unreadable("tensorrt-llm", "mxfp4-experts", "mxfp4-experts") is None
    assert unreadable("vllm-hybrid", "gguf-q2_k", "bf16") is not None
    assert unreadable("vllm-hybrid", "./mine.yaml", "bf16") is None


@pytest.mark.parametrize(
    ("engine", "gpus", "scheme", "why"),
    [
        ("tensorrt-llm", "8xMI300X", "bf16", "does not run on AMD"),
        ("tensorrt-llm", "8xA100-80GB", "fp8", "compute in fp8 for weights in fp8, and a100-80gb does not"),
        ("tensorrt-llm", "8xH100", "nvfp4", "compute in fp4"),
        ("vllm", "1xm3-ultra", "bf16", "does not run on Apple"),
        ("k8s", "1xm3-ultra", "bf16", "does not run on Apple"),
        ("sbatch", "1xm3-ultra", "bf16", "does not run on Apple"),
    ],
)
def test_no_launch_is_written_for_gpus_that_the_engine_does_not_run_on(
    engine: str, gpus: str, scheme: str, why: str
) -> None:
    """A plan for them says so beside its times, and a search rules them out."""
    graph = l4spec.compile(l4spec.load("llama-3.1-8b"))
    own = engine if engine == "tensorrt-llm" else "vllm-hybrid"
    plan = planners.plan(graph, gpus=gpus, quantization=scheme, engine=own)
    with pytest.raises(UserError, match=why):
        emit(engine, LaunchRequest(plan, graph, model="me/mine"))
    if gpus != "1xm3-ultra":  # no times there
        assert plan.latency is not None
        assert any(why in caution for caution in plan.latency.cautions)
    request = SearchRequest(
        gpus=gpus, engine=own, quantization=scheme, prompt_tokens=500, output_tokens=50, concurrency=4
    )
    answer = search_deployments(graph, request)
    assert not answer.ranked
    assert answer.losers
    assert all(why in each.why for each in answer.losers)


def test_kubernetes_asks_for_the_gpus_of_their_vendor() -> None:
    graph = l4spec.compile(l4spec.load("llama-3.1-8b"))
    for gpus, resource, image in (
        ("8xMI300X", "amd.com/gpu: 8", "vllm/vllm-openai-rocm:"),
        ("8xH100", "nvidia.com/gpu: 8", "vllm/vllm-openai:"),
    ):
        plan = planners.plan(graph, gpus=gpus, engine="vllm-hybrid", tp=8)
        text = emit("k8s", LaunchRequest(plan, graph, model="me/mine"))
        assert resource in text
        assert f"image: {image}" in text


def test_a_format_that_an_engine_does_not_read_is_ruled_out_with_the_reason() -> None:
    graph = l4spec.compile(l4spec.load("scout"))
    request = SearchRequest(
        gpus="8xH100", prompt_tokens=8192, output_tokens=1024, concurrency=20, quantization="w4a16,fp8"
    )
    answer = search_deployments(graph, request)
    assert {(each.engine, each.quantization) for each in answer.ranked} >= {("tensorrt-llm", "fp8")}
    assert ("tensorrt-llm", "w4a16") not in {(each.engine, each.quantization) for each in answer.ranked}
    why = {each.why for each in answer.losers if (each.engine, each.quantization) == ("tensorrt-llm", "w4a16")}
    assert why == {"tensorrt-llm reads no weights packed as w4a16"}
