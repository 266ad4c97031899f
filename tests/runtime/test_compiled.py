"""A compiled step is the model's own step: for every kind of layer, wherever in its cache a token lies."""

import copy
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.modules import Context
from l4spec.layers.gqa.module import GQA
from l4spec.runtime.compiled import CompiledStep
from l4spec.runtime.model import Model
from tests.properties.runs import longest_prompt
from tests.runtime.test_training import MODELS
from tests.runtime.tiny import MLA, SWIGLU, gqa, graph_of, llama4_text, moe, randomised, text_of, token_ids
from tests.strategies import graphs

TRACED = "eager"
"""torch's backend that runs what was traced, operation by operation: all but the native code, in no time."""
SEVERAL = text_of(
    {
        "a": gqa(qk_norm={"kind": "rmsnorm", "eps": 1e-5}, qkv_bias=True, mask={"kind": "sliding_window", "size": 6}),
        "latent": MLA,
        "f": moe(num_experts_per_token=3, router={"score": "softmax", "scales": "output"}),
        "dense": SWIGLU,
    },
    [{"attention": "a", "ffn": "f"}, {"attention": "latent", "ffn": "f"}, {"attention": "a", "ffn": "dense"}],
    dtype="bf16",
)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch calls outdated


def steps_of(model: Model, ids: Tensor, past: int, read: Callable[..., Tensor], mask: Tensor | None = None) -> Tensor:
    """Logits [batch, steps, vocab] of the tokens after the first `past`, read one after another."""
    cache = model.new_cache(len(ids), ids.shape[1])
    with torch.no_grad():
        model(ids[:, :past], attention_mask=mask, cache=cache)
        logits = [read(column, cache=cache) for column in torch.split(ids[:, past:], 1, dim=1)]
    assert cache.length == ids.shape[1]
    return torch.cat(logits, dim=1)


def assert_as_the_model(model: Model, ids: Tensor, past: int, step: CompiledStep, mask: Tensor | None = None) -> None:
    """In fp64, so that the order of sums cannot hide a mistake; rounding is that of the largest logit."""
    expected, actual = steps_of(model, ids, past, model, mask), steps_of(model, ids, past, step, mask)
    assert float((actual - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_the_models_across_chunks_and_round_rings(name: str, batch: int) -> None:
    model = randomised(graph_of(MODELS[name]))
    step = CompiledStep(model, TRACED)
    for past in (1, 7, 8, 13):
        assert_as_the_model(model, token_ids(batch, 30), past, step)


def test_rows_of_unequal_length_go_on_each_from_its_own_place() -> None:
    model, ids = randomised(graph_of(llama4_text())), token_ids(3, 24)
    mask = torch.tensor([[0] * 9 + [1] * 2, [0] * 3 + [1] * 8, [1] * 11])
    assert_as_the_model(model, ids, 11, CompiledStep(model, TRACED), mask)


@given(graphs(bidirectional=False), st.integers(1, 20), st.integers(1, 3))
@settings(max_examples=40)
def test_steps_of_any_model_are_the_models(graph: LayerGraph, past: int, batch: int) -> None:
    torch.set_num_threads(1)
    assume(graph.can_cache and past + 4 <= longest_prompt(graph))
    assume(not any(entry.bound.is_state for node in graph.nodes for entry in node.declaration.cache))  # refused
    model = randomised(graph)
    ids = torch.randint(0, graph.model.text.embedding.vocab_size, (batch, past + 4))
    expected, actual = (steps_of(model, ids, past, read) for read in (model, CompiledStep(model, TRACED)))
    off, allowed = float((actual - expected).abs().max()), 1e-12 * max(1.0, float(expected.abs().max()))
    assert off <= allowed or off <= allowed + drift(model, expected, lambda other: steps_of(other, ids, past, other))


def drift(model: Model, expected: Tensor, read: Callable[[Model], Tensor]) -> float:
    """How far logits move when every weight moves by some hundred roundings of fp64: large where scores of 1e6 decide.

    No order of sums can do better than the model's own condition, and a mistake is not a matter of roundings.
    """
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.mul_(1 + 1e-14 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return float((read(moved) - expected).abs().max())


def test_it_is_compiled_once_for_every_place_and_every_cache() -> None:
    compiled: list[Any] = []

    def counting(module: Any, inputs: Sequence[Tensor], **_: Any) -> Any:
        compiled.append(module)
        return module

    model = randomised(graph_of(llama4_text()))
    step = CompiledStep(model, counting)
    for length in (12, 40):
        for past in (1, 6, 8, 11):
            assert_as_the_model(model, token_ids(1, length), past, step)
    assert len(compiled) == 1
    step.prepare(2)
    assert len(compiled) == 2
    assert_as_the_model(model, token_ids(2, 12), 5, step)
    assert len(compiled) == 2


def test_native_code_says_what_the_model_says() -> None:
    model = randomised(graph_of(llama4_text()), dtype="fp32")
    step, ids = l4spec.compile_step(model), token_ids(1, 30)
    actual, expected = (steps_of(model, ids, 5, read) for read in (step, model))
    # sums of some 50 fp32 products in another order, through 4 layers: some ten roundings of 6e-8
    assert torch.allclose(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(model.generate(ids, max_new_tokens=9, step=step), model.generate(ids, max_new_tokens=9))


def test_native_code_in_bf16_is_no_farther_from_fp32_than_the_model() -> None:
    exact = randomised(graph_of(SEVERAL), dtype="fp32")
    model = copy.deepcopy(exact).to(torch.bfloat16)
    exact.load_state_dict(model.state_dict())  # the same rounded weights
    ids = token_ids(1, 24)
    expected = steps_of(exact, ids, 5, exact)
    off_eager, off = (
        float((steps_of(model, ids, 5, read) - expected).square().mean().sqrt())
        for read in (model, CompiledStep(model))
    )
    assert off <= 1.1 * off_eager  # fused, less is rounded between operations


def test_weights_changed_in_place_are_seen_and_converted_ones_compiled_again() -> None:
    model, ids = randomised(graph_of(llama4_text())), token_ids(1, 12)
    step = CompiledStep(model, TRACED)
    assert_as_the_model(model, ids, 5, step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert_as_the_model(model, ids, 5, step)
    model.float()
    actual, expected = (steps_of(model, ids, 5, read) for read in (step, model))
    assert torch.allclose(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_cannot_be_compiled_is_refused() -> None:
    model = randomised(graph_of(llama4_text()), dtype="fp32")
    step = CompiledStep(model, TRACED)
    with pytest.raises(ValueError, match=r"one token of each sequence, found \[1, 2\]"):
        step(token_ids(1, 2), cache=model.new_cache(1, 9))
    with pytest.raises(ValueError, match="the cache has room for 1 tokens"):
        step(token_ids(1, 1), cache=_read(model, model.new_cache(1, 1)))
    short = randomised(graph_of(text_of({"f": SWIGLU}, [{"ffn": "f"}], learned_positions=True, max_seq_len=2)))
    with pytest.raises(ValueError, match="3 tokens are more than the 2 learned positions"):
        steps_of(short, token_ids(1, 3), 1, CompiledStep(short, TRACED))
    with pytest.raises(ValueError, match="a compiled step of this model"):
        model.generate([[1]], max_new_tokens=2, step=CompiledStep(copy.deepcopy(model)))
    with pytest.raises(ValueError, match="sees later tokens"):
        CompiledStep(randomised(graph_of(text_of({"a": gqa(mask={"kind": "none"})}, [{"attention": "a"}]))))
    stage = copy.deepcopy(model)
    stage.has_head = False
    with pytest.raises(UserError, match="one that ranks divide"):
        CompiledStep(stage)
    packed = l4spec.quantize(model, "int8")
    for refused in (lambda: CompiledStep(packed), lambda: step(token_ids(1, 1), cache=model.new_cache(1, 9))):
        with pytest.raises(UserError, match="these are packed"):
            refused()


def _read(model: Model, cache: Any) -> Any:
    model(token_ids(1, 1), cache=cache)
    return cache


def test_a_layer_that_keeps_its_cache_itself_is_refused_by_name() -> None:
    def alone(self: GQA, x: Tensor, *, context: Context) -> Tensor:
        cache = context.cache_of(self.node_id)
        assert cache is not None
        result: Tensor = self.o_proj(self.q_proj(x))
        return result

    model = randomised(graph_of(llama4_text()))
    with patch.object(GQA, "forward", alone), pytest.raises(UserError, match=r"text\.layers\.0\.attention keeps"):
        CompiledStep(model, TRACED)(token_ids(1, 1), cache=_read(model, model.new_cache(1, 9)))


def test_a_missing_compiler_is_reported_in_one_line() -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in config.cpp.cxx\nand more")

    model = randomised(graph_of(llama4_text()))
    with pytest.raises(UserError, match=r"could not be compiled: .*\(it needs a C\+\+ compiler\)") as raised:
        CompiledStep(model, missing)(token_ids(1, 1), cache=_read(model, model.new_cache(1, 9)))
    assert "\n" not in str(raised.value)
