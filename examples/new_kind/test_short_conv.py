"""Tests by the author of a kind: the module equals the reference, and the declared sizes equal the measured ones.

With the package installed: python -m pytest test_short_conv.py
"""

from pathlib import Path

import pytest
import torch
from l4spec_short_conv.cost import declare
from l4spec_short_conv.module import ShortConv
from l4spec_short_conv.spec import ShortConvSpec
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import l4spec
from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, TokenLayout
from l4spec.layers.declaration import Work
from l4spec.runtime.build import build
from l4spec.runtime.model import Model

TINY = Path(__file__).with_name("tiny.yaml")
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def model() -> Model:
    """The miniature with weights large enough that every layer matters."""
    model = build(l4spec.compile(l4spec.load(TINY)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            fan_in = tensor.shape[-1] if tensor.dim() > 1 else 1
            tensor.normal_(1.0 if tensor.dim() == 1 else 0.0, fan_in**-0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Two sequences of 23 tokens."""
    return torch.randint(256, (2, 23), generator=torch.Generator().manual_seed(2))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to fp32 rounding in some ten operations of each of 16 layers, of which 20 EPS were seen to remain."""
    error = (actual - expected).norm() / expected.norm()
    assert error < 50 * EPS, f"relative error {error:.2e}"


@torch.no_grad()
def test_logits_equal_the_reference(model: Model, ids: Tensor) -> None:
    assert_close(model(ids), reference(model)(ids).logits)


@torch.no_grad()
def test_a_prompt_in_pieces_gives_the_same_logits_as_at_once(model: Model, ids: Tensor) -> None:
    cache = model.new_cache(2, 23)
    pieces = [model(ids[:, start:stop], cache=cache) for start, stop in ((0, 1), (1, 2), (2, 9), (9, 22), (22, 23))]
    assert_close(torch.cat(pieces, dim=1), model(ids))


@torch.no_grad()
def test_rows_of_unequal_length_equal_each_row_alone(model: Model, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    cache = model.new_cache(2, 24)
    prompt = model(ids, attention_mask=mask, cache=cache)
    following = model(ids[:, :1], cache=cache)
    for row, first in ((0, 0), (1, 9)):
        alone = model(torch.cat((ids[row : row + 1, first:], ids[row : row + 1, :1]), dim=1))
        assert_close(prompt[row : row + 1, first:], alone[:, :-1])
        assert_close(following[row : row + 1], alone[:, -1:])


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(model: Model, ids: Tensor) -> None:
    sequence_ids = torch.tensor([[0] * 10 + [1] * 13])
    packed = model(ids[:1], sequence_ids=sequence_ids)
    assert_close(packed, torch.cat((model(ids[:1, :10]), model(ids[:1, 10:])), dim=1))


def test_the_cache_takes_the_declared_elements(model: Model) -> None:
    allocated = {node: layer.data.numel() for node, layer in model.new_cache(3, 512).layers.items()}
    conv = [node for node in model.graph.nodes if node.kind == "short_conv"]
    assert [allocated[node.id] for node in conv] == [3 * 2 * 64] * 10


def test_autograd_saves_the_declared_elements() -> None:
    spec, width = ShortConvSpec(kind="short_conv", kernel_size=4), Width(hidden_size=16, max_seq_len=32)
    module = ShortConv(spec, width)
    context = Context(TokenLayout(2, 7, 0, torch.arange(7)))
    parameter_storage = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_storage:
            saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.randn(2, 7, 16), context=context)
    declared = declare(spec, width).saved(Work(num_sequences=2, num_queries=7, phase="train"))
    assert sum(saved.values()) == sum(buffer.elements for buffer in declared)


def test_a_flop_counter_sees_the_declared_flops() -> None:
    spec, width = ShortConvSpec(kind="short_conv", kernel_size=4), Width(hidden_size=16, max_seq_len=32)
    module, context = ShortConv(spec, width), Context(TokenLayout(2, 7, 0, torch.arange(7)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.randn(2, 7, 16), context=context)
    declared = declare(spec, width).executed_operations(Work(num_sequences=2, num_queries=7))
    assert counter.get_total_flops() == sum(operation.flops for operation in declared) == 8 * 16**2 * 14


def reference(model: Model) -> torch.nn.Module:
    """LFM2 of `transformers` with the weights of `model`."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        hidden_size=64,
        intermediate_size=128,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        full_attn_idxs=[2, 5, 8, 10, 12, 14],
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    theirs: torch.nn.Module = Lfm2ForCausalLM(config)
    theirs.eval()
    ours = model.state_dict()
    tensors = {f"model.{name}": _find(ours, name) for name in theirs.get_submodule("model").state_dict()}
    theirs.load_state_dict({**tensors, "lm_head.weight": ours["text.embedding.weight"]})
    return theirs


_NAMES = {
    "operator_norm": "attention_norm",
    "self_attn.out_proj": "attention.o_proj",
    "self_attn.q_layernorm": "attention.q_norm",
    "self_attn.k_layernorm": "attention.k_norm",
    "self_attn": "attention",
    "conv.out_proj": "attention.out_proj",
    "feed_forward.w1": "ffn.gate_proj",
    "feed_forward.w3": "ffn.up_proj",
    "feed_forward.w2": "ffn.down_proj",
    "embed_tokens": "embedding",
    "embedding_norm": "norm",
}


def _find(ours: dict[str, Tensor], name: str) -> Tensor:
    """The tensor that `transformers` calls `name`."""
    if name.endswith("conv.in_proj.weight"):
        prefix = f"text.{name.removesuffix('conv.in_proj.weight')}attention"
        return torch.cat([ours[f"{prefix}.{part}_proj.weight"] for part in "bcx"])
    if name.endswith("conv.conv.weight"):
        return ours[f"text.{name.removesuffix('conv.conv.weight')}attention.conv"][:, None]
    theirs = next((key for key in _NAMES if f".{key}." in f".{name}"), "")
    return ours["text." + (name.replace(theirs, _NAMES[theirs]) if theirs else name)]
