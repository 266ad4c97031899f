"""What steps are timed by, rates per token and what grows with the context, is the mathematics of the model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.library import shipped_specs
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.counts.flops import model_flops
from planners.counts.weights import scheme_of
from planners.timing.layer_demand import KindProfile, Step, attended, index_flops, pairs_of, profile, rows_of, scored
from tests.planners.models import graph

SPECS = sorted(shipped_specs())
LONGEST = 200_000


def profiled(model: LayerGraph, *, training: bool = False) -> tuple[KindProfile, ...]:
    return profile(model, scheme_of(quantization("bf16")), Layout(), 2, training=training)


def flops_of(model: LayerGraph, step: Step) -> float:
    return sum(
        kind.count
        * (
            rows_of(kind, step) * sum(flops for _, flops in kind.flops_per_row)
            + attended(kind, step)[0] * kind.pair_flops
            + scored(kind, step)
        )
        for kind in profiled(model)
    )


@settings(max_examples=100)
@given(spec=st.sampled_from(SPECS), new=st.integers(1, LONGEST), cached=st.integers(0, LONGEST))
def test_flops_of_a_timed_prompt_are_the_model_s(spec: str, new: int, cached: int) -> None:
    model = graph(spec)
    step = Step(prompt_tokens=new, prompt_length=new + cached, prompt_cached=cached, logit_rows=1)
    counted = model_flops(model, Work(1, new, cached, phase="prefill", num_logits=1))
    assert flops_of(model, step) == pytest.approx(counted, rel=1e-6)


@settings(max_examples=100)
@given(spec=st.sampled_from(SPECS), sequences=st.integers(1, 64), context=st.integers(1, LONGEST))
def test_flops_of_a_timed_decode_step_are_the_model_s(spec: str, sequences: int, context: int) -> None:
    model = graph(spec)
    counted = model_flops(model, Work(sequences, 1, context - 1, phase="decode"))
    assert flops_of(model, Step(decode=sequences, context=context)) == pytest.approx(counted, rel=1e-6)


@settings(max_examples=20)
@given(
    spec=st.sampled_from(["scout", "maverick", "qwen3-30b-a3b"]), part=st.floats(0.125, 8), length=st.integers(64, 9999)
)
def test_flops_of_a_timed_training_step_are_the_model_s_where_experts_choose(
    spec: str, part: float, length: int
) -> None:
    """Experts take whole numbers of tokens: at most one each more than their part."""
    chosen = l4spec.load(spec, [f"text.parts.moe.balance={{expert_choice: {part}}}"])
    model = l4spec.compile(chosen)
    timed = sum(
        kind.count
        * (
            length * sum(flops for _, flops in kind.flops_per_row)
            + (pairs_of(kind, length, 0) * kind.pair_flops if kind.bound else 0)
            + index_flops(kind, length, 0)
        )
        for kind in profiled(model, training=True)
    )
    moe = chosen.text.parts["moe"]
    most = moe.num_experts / (part * moe.num_experts_per_token * length)  # type: ignore[attr-defined]  # its own kind
    assert timed == pytest.approx(model_flops(model, Work(1, length, phase="train")), rel=1e-5 + most)


@given(context=st.integers(1, LONGEST))
def test_a_decode_step_reads_the_latents_that_an_index_chooses_and_all_of_its_keys(context: int) -> None:
    """DeepSeek-V3.2: 576 numbers of a latent, of 2,048 tokens at most, and 128 of an index key, in 61 layers."""
    (kind,) = (kind for kind in profiled(graph("deepseek-v3.2")) if kind.has_index)
    read = attended(kind, Step(decode=1, context=context))[1] * kind.cache_bytes
    assert kind.count * read == pytest.approx(61 * 2 * (576 * min(context, 2048) + 128 * context))
