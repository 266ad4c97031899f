"""A search takes an engine and a format together only where the engine reads it: what wins can be launched."""

import l4spec
from l4spec.deploy import sglang, tensorrt_llm, vllm
from l4spec.deploy.checkpoints import WeightFormats, known_checkpoints
from planners.search.deployments import search_deployments
from planners.search.readable import READS, RELEASED, not_read
from planners.search.search_request import SearchRequest


def formats(table: WeightFormats) -> set[str]:
    return {"bf16", *table.plain, *table.online, *table.packed}


def test_what_engines_read_is_what_launches_can_name() -> None:
    assert READS["vllm"] == formats(vllm.FORMATS) | set(RELEASED)
    assert READS["sglang"] == formats(sglang.FORMATS) | set(RELEASED)
    assert READS["tensorrt-llm"] == set(tensorrt_llm._READS)
    released = {each.scheme for checkpoints in known_checkpoints().values() for each in checkpoints}
    assert released == {"bf16", *RELEASED}


def test_what_a_model_is_published_in_and_own_schemes_are_read() -> None:
    assert not_read("tensorrt-llm", "w4a16", "bf16") == "tensorrt-llm reads no weights packed as w4a16"
    assert not_read("tensorrt-llm", "mxfp4-experts", "mxfp4-experts") is None
    assert not_read("vllm-hybrid", "gguf-q2_k", "bf16") is not None
    assert not_read("vllm-hybrid", "./mine.yaml", "bf16") is None


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
