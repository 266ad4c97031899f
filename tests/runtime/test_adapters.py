"""Adapters on a frozen model: planned bytes and FLOPs are those that torch counts of our modules."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l4spec.graph.adapters import Lora, adapters_of, pairs_on, short_name
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.modules import Linear
from l4spec.layers.declaration import Work
from l4spec.runtime.model import Model
from planners.counts.flops import lora_flops, model_flops
from planners.device.activations import kept_per_token
from tests.runtime.kept import kept_bytes
from tests.runtime.tiny import MLA, ROPE, SWIGLU, Json, gqa, graph_of, moe, randomised, text_of, token_ids

RANK, BATCH, TOKENS = 4, 2, 32
BF16, FP32 = 2, 4
DENSE: dict[str, Json] = {
    "swiglu": {"a": gqa(position=ROPE), "f": SWIGLU},
    "gated attention, geglu": {"a": gqa(output_gate="elementwise"), "f": {**SWIGLU, "kind": "geglu"}},
    "mlp": {"a": gqa(), "f": {"kind": "mlp", "intermediate_size": 64, "activation": "gelu"}},
}
OTHERS: dict[str, Json] = {
    "mla": {"a": MLA, "f": SWIGLU},
    "moe": {"a": gqa(), "f": moe(num_shared_experts=1)},
}
TARGETS = [("linear",), ("q_proj", "v_proj"), ("o_proj",), ("attention",), ("ffn",)]


class Adapted(nn.Module):
    """A frozen layer with an adapter, or without one."""

    def __init__(self, base: Linear, rank: int) -> None:
        super().__init__()
        out, into = base.weight.shape
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, into)) if rank else None
        self.up = nn.Parameter(torch.randn(out, rank)) if rank else None

    def forward(self, x: Tensor) -> Tensor:
        result = nn.functional.linear(x, self.base.weight, self.base.bias)
        if self.down is None or self.up is None:
            return result
        return result + nn.functional.linear(nn.functional.linear(x, self.down), self.up)


def with_adapters(model: Model, lora: Lora | None) -> Model:
    """The model in training: whole, or frozen with adapters on the linear layers that `lora` names."""
    if lora is None:
        return model
    model.requires_grad_(False)
    for node in model.graph.nodes:
        layer, targets = model.get_submodule(node.id), {short_name(pair.base) for pair in pairs_on(node, lora)}
        linear = [(name, child) for name, child in layer.named_modules() if isinstance(child, Linear)]
        for name, child in linear:
            parent, _, own = name.rpartition(".")
            setattr(layer.get_submodule(parent), own, Adapted(child, lora.rank if name in targets else 0))
    return model


def graph_with(parts: Json, num_layers: int) -> LayerGraph:
    return graph_of(text_of(parts, [{"attention": "a", "ffn": "f", "repeat": num_layers}]))


def kept_of_a_layer(parts: Json, lora: Lora | None) -> int:
    """Bytes of fp32 that a further layer keeps. The first keeps fewer: what is before it needs no gradient."""
    kept = []
    for num_layers in (3, 2):
        model = with_adapters(randomised(graph_with(parts, num_layers), dtype="fp32").train(), lora)
        kept.append(kept_bytes(model, token_ids(BATCH, TOKENS), besides=[*model.parameters(), *model.buffers()]))
    return kept[0] - kept[1]


def planned_of_a_layer(parts: Json, lora: Lora) -> int:
    """The same as planned in bf16, but for the sums of softmaxes, which are fp32 in the plan too."""
    kept = kept_per_token(graph_with(parts, 1), 1, 1, "none", lora=lora)[0].kept
    sums: int = FP32 * parts["a"]["num_heads"]
    return BATCH * TOKENS * ((kept - sums) * FP32 // BF16 + sums)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", DENSE)
def test_a_frozen_layer_with_adapters_keeps_what_is_planned_to_the_byte(name: str, targets: tuple[str, ...]) -> None:
    """Beside it the one number of a token that each of two norms keeps, which plans leave out."""
    lora = Lora(RANK, targets)
    norms = 2 * BATCH * TOKENS * FP32
    assert kept_of_a_layer(DENSE[name], lora) == planned_of_a_layer(DENSE[name], lora) + norms


@pytest.mark.parametrize("name", OTHERS)
def test_a_further_target_adds_what_is_planned(name: str) -> None:
    """Of layers of which plans leave something out in any training."""
    few, more = Lora(RANK, ("attention",)), Lora(RANK, ("attention", "ffn"))
    added = kept_of_a_layer(OTHERS[name], more) - kept_of_a_layer(OTHERS[name], few)
    assert added == planned_of_a_layer(OTHERS[name], more) - planned_of_a_layer(OTHERS[name], few) > 0


def test_dropout_keeps_a_mask_and_a_dropped_input_of_each_adapter() -> None:
    parts, heads = DENSE["swiglu"], Lora(RANK, ("q_proj", "v_proj"))
    plain, dropping = (
        kept_per_token(graph_with(parts, 1), 1, 1, "none", lora=heads._replace(dropout=each))[0].kept
        for each in (False, True)
    )
    width = graph_with(parts, 1).hidden_size
    assert dropping - plain == 2 * (BF16 + 1) * width - BF16 * width  # the shared input is not kept


@pytest.mark.parametrize("targets", [("linear",), ("q_proj", "v_proj")])
@pytest.mark.parametrize("name", ["swiglu", "gated attention, geglu", "mlp", "mla"])
def test_a_step_of_adapters_has_the_flops_that_torch_counts(name: str, targets: tuple[str, ...]) -> None:
    """Less than a step of all weights by those of frozen weights' gradients, and more by the adapters' own."""
    graph, lora = graph_with({**DENSE, **OTHERS}[name], 2), Lora(RANK, targets)
    counted = []
    for chosen in (None, lora):
        model = with_adapters(randomised(graph, dtype="fp32").train(), chosen)
        model.get_submodule("text.embedding").register_forward_hook(lambda *call: call[-1].requires_grad_())
        with FlopCounterMode(display=False) as flops:
            torch.autograd.backward(model(token_ids(BATCH, TOKENS)).square().mean())
        counted.append(flops.get_total_flops())
    work = Work(BATCH, TOKENS, phase="train")
    assert counted[1] - counted[0] == lora_flops(graph, work, lora) - 3 * model_flops(graph, work)


def test_every_adapter_of_a_model_is_declared() -> None:
    graph, lora = graph_with(DENSE["swiglu"], 2), Lora(RANK)
    model = with_adapters(randomised(graph, dtype="fp32"), lora)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(tensor.numel for node in graph.nodes for tensor in adapters_of(node, lora))
