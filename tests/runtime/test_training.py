"""Training: gradients are those of the mathematics, recomputing activations changes none, and compiling works."""

import copy

import pytest
import torch
from torch import Tensor

from l4spec.layers.attention.compute import Attention
from l4spec.layers.attention.masks import CausalMask, ChunkedMask, Mask, SlidingWindowMask
from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.layers.common.modules import Context, TokenLayout
from l4spec.runtime.model import Model
from planners.device.activations import KeptOfLayer, kept_per_token
from tests.runtime.kept import kept_bytes
from tests.runtime.tiny import MLA, ROPE, SWIGLU, Json, gqa, graph_of, llama4_text, moe, randomised, text_of, token_ids
from tests.runtime.tiny import vision as tower

ROUTED = moe(num_experts=40, num_shared_experts=1, shared_gate=True, capacity_factor=2.0)
MODELS: dict[str, Json] = {
    "llama4": llama4_text(),
    "mla": text_of({"a": MLA, "f": ROUTED}, [{"attention": "a", "ffn": "f", "repeat": 2}]),
    "window": text_of(
        {"a": gqa(mask={"kind": "sliding_window", "size": 5}, position=ROPE), "f": SWIGLU},
        [{"attention": "a", "ffn": "f", "form": "sandwich", "repeat": 2}],
    ),
    "parallel": text_of(
        {"a": gqa(logit_softcap=2.0), "f": moe()}, [{"attention": "a", "ffn": "f", "form": "parallel"}]
    ),
}


def loss_of(model: Model, ids: Tensor) -> Tensor:
    logits = model(ids)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradients(model: Model, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss_of(model, ids))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_slopes_of_the_loss(name: str) -> None:
    model, ids = randomised(graph_of(MODELS[name])).train(), token_ids(2, 19)
    result = gradients(model, ids)
    generator = torch.Generator().manual_seed(5)
    for tensor_name, parameter in model.named_parameters():
        if "router" in tensor_name:
            continue  # a step may change which experts are chosen
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * direction
        with torch.no_grad():
            parameter.add_(step)
            above = loss_of(model, ids)
            parameter.sub_(2 * step)
            below = loss_of(model, ids)
            parameter.add_(step)
        slope = float(above - below) / 2e-6
        # central differences err by step^2 and by rounding / step: about 1e-9 of a loss near 10
        assert slope == pytest.approx(float((result[tensor_name] * direction).sum()), rel=1e-5, abs=1e-7), tensor_name


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_recomputing_activations_changes_no_gradient(name: str, checkpointing: Checkpointing) -> None:
    model, ids = randomised(graph_of(MODELS[name])).train(), token_ids(2, 19)
    expected = gradients(model, ids)
    model.checkpointing = checkpointing
    actual = gradients(model, ids)
    assert actual.keys() == expected.keys()
    assert all(torch.allclose(actual[key], expected[key], rtol=1e-12, atol=1e-14) for key in expected)


DENSE = {"a": gqa(mask={"kind": "causal"}), "f": SWIGLU}
FP32, BF16 = 4, 2


def kept_of(num_layers: int, checkpointing: Checkpointing) -> int:
    graph = graph_of(text_of(DENSE, [{"attention": "a", "ffn": "f", "repeat": num_layers}]))
    model, ids = randomised(graph, dtype="fp32").train(), token_ids(2, 32)
    model.checkpointing = checkpointing
    return kept_bytes(model, ids, besides=model.parameters())


def planned_of(checkpointing: Checkpointing) -> KeptOfLayer:
    graph = graph_of(text_of(DENSE, [{"attention": "a", "ffn": "f"}]))
    return kept_per_token(graph, 1, 1, checkpointing)[0]


def test_full_checkpointing_keeps_of_a_layer_what_is_planned_to_the_byte() -> None:
    """What a third layer adds; the plan counts bf16."""
    added = kept_of(3, "full") - kept_of(2, "full")
    assert added == 2 * 32 * planned_of("full").kept * FP32 // BF16


def test_selective_checkpointing_saves_what_is_planned_to_the_byte() -> None:
    """Of fused attention the sums of softmaxes, which are fp32 in the plan too."""
    saved = kept_of(2, "none") - kept_of(2, "selective")
    assert saved == 2 * 2 * 32 * planned_of("selective").again > 0


@pytest.mark.parametrize(
    ("mask", "softcap"),
    [
        (CausalMask(kind="causal"), None),
        (CausalMask(kind="causal"), 2.0),
        (ChunkedMask(kind="chunked", size=16), None),
        (SlidingWindowMask(kind="sliding_window", size=10), None),
    ],
)
def test_the_core_of_attention_keeps_its_inputs_alone(mask: Mask, softcap: float | None) -> None:
    query, key, value = (torch.randn(2, 40, *shape, requires_grad=True) for shape in ((6, 8), (16,), (16,)))
    attention = Attention(mask, 0.3, (16, 16), lambda rows: (by_head(rows[0]), by_head(rows[1])), softcap=softcap)
    context = Context(TokenLayout(2, 40, 0, torch.arange(40)), recomputes_core=True)
    kept = kept_bytes(lambda *rows: attention(rows[0], rows[1:], context, None), query, key, value)
    assert kept == query.nbytes + key.nbytes + value.nbytes


def by_head(rows: Tensor) -> Tensor:
    return rows.view(*rows.shape[:-1], 2, 8).transpose(1, 2)


def test_heads_of_a_latent_are_expanded_again() -> None:
    """Of latent attention neither keys nor values are kept: at least what the plan leaves out."""
    graph = graph_of(text_of({"a": MLA, "f": SWIGLU}, [{"attention": "a", "ffn": "f"}]))
    model, ids = randomised(graph, dtype="fp32").train(), token_ids(2, 32)
    kept: dict[Checkpointing, int] = {}
    for kind in CHECKPOINTING:
        model.checkpointing = kind
        kept[kind] = kept_bytes(model, ids, besides=model.parameters())
    planned = kept_per_token(graph, 1, 1, "selective")[0].again * FP32 // BF16
    assert kept["none"] - kept["selective"] >= 2 * 32 * planned
    assert kept["full"] < kept["selective"] < kept["none"]


def test_the_vision_tower_recomputes_too() -> None:
    model = randomised(graph_of(llama4_text(), tower())).train()
    model.image_token_id = 5
    ids = token_ids(1, 12)
    ids[ids == 5] = 6
    ids[0, 2:6] = 5
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    all_gradients = []
    for kind in CHECKPOINTING:
        model.checkpointing = kind
        model.zero_grad()
        torch.autograd.backward(model(ids, pixel_values=pixels).square().mean())
        grad = model.get_parameter("vision.layers.0.ffn.up_proj.weight").grad
        assert grad is not None
        all_gradients.append(grad.clone())
    assert all(torch.allclose(all_gradients[0], other, rtol=1e-12, atol=1e-14) for other in all_gradients[1:])
    assert bool(all_gradients[0].any())


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model, ids = randomised(graph_of(llama4_text()), dtype="fp32").train(), token_ids(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_copy_is_a_model_of_its_own() -> None:
    model, ids = randomised(graph_of(text_of({"f": SWIGLU}, [{"ffn": "f"}], tie_embeddings=True))), token_ids(1, 5)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        before = model(ids)
        twin.get_parameter("text.embedding.weight").zero_()
        assert torch.equal(model(ids), before)
        assert not twin(ids).any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_equals_the_eager_one(name: str) -> None:
    torch.compiler.reset()
    model, ids = randomised(graph_of(MODELS[name])).train(), token_ids(2, 19)
    expected = gradients(model, ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(ids), model(ids), rtol=1e-12, atol=1e-12)
    model.zero_grad()
    logits = compiled(ids)
    torch.autograd.backward(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    for key, parameter in model.named_parameters():
        if key in expected:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, expected[key], rtol=1e-10, atol=1e-12), key


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [1, 2])
def test_the_text_model_compiles_without_a_break(rows: int) -> None:
    torch.compiler.reset()
    model, ids = randomised(graph_of(llama4_text())), token_ids(rows, 19)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(ids), model(ids), rtol=1e-12, atol=1e-12)
    cache, twin = model.new_cache(rows, 30), model.new_cache(rows, 30)
    for part in torch.split(ids, [11, 1, 1, 1, 5], dim=1):
        assert torch.allclose(compiled(part, cache=cache), model(part, cache=twin), rtol=1e-12, atol=1e-12)
