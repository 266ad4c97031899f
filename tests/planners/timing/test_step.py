"""One step: what it must read and compute, what bounds it, and how the estimate relates to the bound."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from planners.catalog import hardware, quantization
from planners.counts.flops import model_flops
from planners.counts.weights import scheme_of, weigh
from planners.timing.efficiency import serving_efficiency
from planners.timing.layer_demand import Routing, Step
from planners.timing.machine import Machine
from planners.timing.step import StepModel
from tests.strategies import graphs

Build = Callable[..., StepModel]
H100_BYTES_PER_SECOND = 3.35e12
H100_BF16 = 989.4e12


def test_a_decode_step_of_a_dense_model_reads_every_weight_but_the_embedding_once(model: Build) -> None:
    dense = model("llama-3.1-8b")
    read = sum(use.weight_read for use in dense.uses(Step(decode=1, context=1))) * H100_BYTES_PER_SECOND
    embedding = weigh(dense.graph, dense.scheme).by_part["embedding"]
    weights = weigh(dense.graph, dense.scheme).bytes - embedding
    assert read == pytest.approx(weights, rel=1e-12)


def test_a_decode_step_reads_the_covered_experts_and_not_all(model: Build) -> None:
    scout = model("scout")
    parts = weigh(scout.graph, scout.scheme).by_part

    def experts_read(batch: int) -> float:
        weight_bytes = sum(
            u.weight_read for k, u in zip(scout.kinds, scout.uses(Step(decode=batch)), strict=True) if k.num_experts
        )
        return weight_bytes * H100_BYTES_PER_SECOND - parts["shared_expert"] - parts["router"]

    assert experts_read(1) == pytest.approx(parts["routed_experts"] / 16, rel=0.002)
    assert experts_read(16) == pytest.approx(parts["routed_experts"] * (1 - (15 / 16) ** 16), rel=0.003)


def test_a_routing_histogram_reads_fewer_experts_than_uniform_routing(model: Build) -> None:
    scout = model("scout")
    skewed = StepModel(scout.graph, scout.scheme, scout.layout, scout.machine, 2, None, Routing((50.0, *[1.0] * 15)))
    step = Step(decode=16, context=100)
    assert skewed.time(step).bound_seconds < scout.time(step).bound_seconds


def test_a_chunk_layer_reads_only_its_chunk(model: Build) -> None:
    scout = model("scout")
    local, world = (
        [
            u.cached
            for k, u in zip(scout.kinds, scout.uses(Step(decode=1, context=at)), strict=True)
            if "local" in k.name
        ]
        for at in (8192, 8193)
    )
    assert sum(world) < sum(local) / 1000  # token 8,193 opens a new chunk


def test_the_bound_counts_the_flops_of_the_mathematics(model: Build) -> None:
    dense = model("llama-3.1-8b")
    uses = dense.uses(Step(prompt_tokens=2048, prompt_length=2048, logit_rows=1))
    seconds = sum(use.matmul + use.attention for use in uses)
    flops = model_flops(dense.graph, Work(1, 2048, num_logits=1))
    assert seconds * H100_BF16 == pytest.approx(flops, rel=1e-9)


def test_prefill_is_bound_by_compute_and_a_lone_decode_by_memory(model: Build) -> None:
    dense = model("llama-3.1-8b")
    assert dense.time(Step(prompt_tokens=8192, prompt_length=8192)).bounded_by == "compute"
    assert dense.time(Step(decode=1, context=1000)).bounded_by == "memory"


def test_tensor_parallelism_across_hosts_is_bound_by_links(model: Build) -> None:
    inside = model("llama-3.1-70b", tp=8).time(Step(prompt_tokens=8192, prompt_length=8192))
    across = model("llama-3.1-70b", tp=8, hosts_of=4).time(Step(prompt_tokens=8192, prompt_length=8192))
    assert across.bounded_by == "links"
    assert across.bound_seconds > inside.bound_seconds


def test_weight_bytes_follow_the_quantization_and_compute_its_format(model: Build) -> None:
    step = Step(decode=1, context=10)
    bf16, fp8, int4 = (model("llama-3.1-70b", scheme=name) for name in ("bf16", "fp8", "w4a16"))
    weight_bytes = [sum(use.weight_read for use in m.uses(step)) for m in (bf16, fp8, int4)]
    matmul = [sum(use.matmul for use in m.uses(step)) for m in (bf16, fp8, int4)]
    assert weight_bytes[0] > weight_bytes[1] > weight_bytes[2]
    assert matmul[1] < matmul[0]
    assert matmul[2] == pytest.approx(matmul[0])  # weight-only schemes compute in bf16


def test_a_device_without_fp8_units_computes_fp8_weights_in_bf16(model: Build) -> None:
    assert Machine(hardware("a100-80gb"), 8).peak("fp8") == Machine(hardware("a100-80gb"), 8).peak("bf16")


def test_without_a_published_peak_no_time_is_reported(model: Build) -> None:
    unknown = model("llama-3.1-8b", "m3-ultra").unknown
    assert unknown is not None
    assert "m3-ultra" in unknown


def test_an_engine_that_nobody_measured_has_bounds_but_no_estimate(model: Build) -> None:
    assert model("llama-3.1-8b", engine="llama.cpp").time(Step(decode=1)).estimate_seconds is None


def test_the_estimate_of_the_parts_is_the_estimate_of_the_step(model: Build) -> None:
    scout, step = model("scout", tp=8), Step(decode=32, context=4096)
    assert scout.time(step).estimate_seconds == pytest.approx(scout.seconds(step))


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "sglang"])
@pytest.mark.parametrize("step", [Step(decode=1, context=100), Step(decode=64, context=9000)])
def test_no_estimate_beats_its_bound(model: Build, engine: str, step: Step) -> None:
    for spec in ("scout", "maverick", "llama-3.1-70b", "deepseek-v3"):
        time = model(spec, "h200", tp=8, engine=engine, scheme="fp8", kv_bytes=1).time(step)
        assert time.estimate_seconds is not None
        assert time.estimate_seconds > time.bound_seconds


@settings(max_examples=60)
@given(graph=graphs(bidirectional=False), batch=st.integers(1, 64), context=st.integers(1, 500))
def test_more_of_anything_never_takes_less_time(graph: LayerGraph, batch: int, context: int) -> None:
    """Over random models: more sequences, and for models without chunks a longer context, bound and estimate alike."""
    model = StepModel(
        graph,
        scheme_of(quantization("bf16")),
        Layout(),
        Machine(hardware("h100"), 8),
        2,
        serving_efficiency("vllm"),
    )
    now, more = model.time(Step(decode=batch, context=context)), model.time(Step(decode=batch + 1, context=context))
    assert more.bound_seconds >= now.bound_seconds * (1 - 1e-12)
    assert (more.estimate_seconds or 0) >= (now.estimate_seconds or 0) * (1 - 1e-12)
    if all(kind.bound is None or kind.bound.kind != "chunk" for kind in model.kinds):
        assert model.time(Step(decode=batch, context=context + 1)).bound_seconds >= now.bound_seconds * (1 - 1e-12)


@settings(max_examples=60)
@given(graph=graphs(bidirectional=False), tokens=st.integers(1, 300))
def test_prefill_flops_equal_the_planners_count_over_random_models(graph: LayerGraph, tokens: int) -> None:
    model = StepModel(graph, scheme_of(quantization("bf16")), Layout(), Machine(hardware("h100"), 8), 2, None)
    uses = model.uses(Step(prompt_tokens=tokens, prompt_length=tokens, logit_rows=tokens))
    flops = sum((use.matmul + use.attention) * H100_BF16 for use in uses)
    assert flops == pytest.approx(model_flops(graph, Work(1, tokens)), rel=1e-9)


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_the_tower_computes_at_the_rate_of_the_text_s_bf16_matmuls(model: Build, tp: int, engine: str) -> None:
    """A tile takes as long a FLOP as the tensor cores of the head: its FLOPs over tp at the share that bf16 reaches."""
    scout = model("scout", tp=tp, engine=engine)
    assert scout.efficiency is not None
    uses = zip(scout.kinds, scout.uses(Step(decode=1000)), strict=True)
    (head,) = (use.tensor_cores / scout.efficiency.compute for kind, use in uses if kind.per_logit_row)
    a_flop = head * tp / (1000 * 2 * 5120 * 202_048)
    per_tile = model_flops(scout.graph, Work(0, 0), num_tiles=1)
    assert scout.tile_seconds == pytest.approx(per_tile * a_flop / tp)
