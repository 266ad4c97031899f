"""Tiny models as specs, and what tests of the runtime share."""

from typing import Any

import torch
from torch import Tensor

from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.build import build
from l4spec.runtime.model import Model
from l4spec.spec.model import ModelSpec
from l4spec.spec.resolve import resolve

Json = dict[str, Any]
HIDDEN = 48
VOCAB = 97


def graph_of(text: Json, vision: Json | None = None) -> LayerGraph:
    """The graph of a model from plain data, as YAML would give it."""
    document = {"l4spec": 1, "name": "tiny", "text": text, "vision": vision}
    return build_graph(resolve(ModelSpec.model_validate(document)))


def text_of(parts: Json, layers: list[Json], **others: Any) -> Json:
    """A small text model of these parts and layers."""
    base: Json = {
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "max_seq_len": 4096,
        "norm": {"kind": "rmsnorm", "eps": 1e-5},
        "parts": parts,
        "layers": layers,
        "dtype": "fp32",
    }
    return base | others


def gqa(**others: Any) -> Json:
    """Grouped-query attention with 4 query and 2 key heads of 16, causal, without positions."""
    base: Json = {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    return base | {"mask": {"kind": "causal"}, "position": {"kind": "none"}} | others


def moe(**others: Any) -> Json:
    """Six experts of width 40, two a token, sigmoid scores on the input."""
    base: Json = {"kind": "moe", "num_experts": 6, "num_experts_per_token": 2, "intermediate_size": 40}
    return base | {"router": {"score": "sigmoid", "scales": "input"}} | others


ROPE: Json = {"kind": "rope", "theta": 10000.0}
SWIGLU: Json = {"kind": "swiglu", "intermediate_size": 64}
MLA: Json = {
    "kind": "mla",
    "num_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "mask": {"kind": "causal"},
    "position": ROPE | {"layout": "interleaved"},
    "norm_eps": 1e-6,
}


def llama4_text(chunk: int = 8, **others: Any) -> Json:
    """The structure of Llama 4: local layers with rope and chunks, a global one with temperature, dense and mixture."""
    return text_of(
        {
            "local": gqa(
                mask={"kind": "chunked", "size": chunk},
                position=ROPE | {"layout": "interleaved"},
                qk_norm={"kind": "l2"},
            ),
            "global": gqa(temperature={"floor_scale": 4, "attn_scale": 0.1}),
            "moe": moe(num_experts_per_token=1, num_shared_experts=1),
            "dense": SWIGLU,
        },
        [
            {
                "repeat": 2,
                "blocks": [
                    {"attention": "local", "ffn": "dense"},
                    {"attention": "local", "ffn": "moe"},
                    {"attention": "global", "ffn": "moe"},
                ],
            }
        ],
        **others,
    )


def vision(class_token: str = "last") -> Json:
    """A tower of 4 x 4 patches that fold to 2 x 2 image tokens per tile."""
    attention = gqa(
        num_heads=2,
        num_kv_heads=2,
        qkv_bias=True,
        output_bias=True,
        mask={"kind": "none"},
        position={"kind": "rope_2d", "theta": 10000.0},
    )
    tower: Json = {
        "hidden_size": 32,
        "norm": {"kind": "layernorm", "eps": 1e-5},
        "class_token": class_token,
        "learned_positions": True,
        "pre_layernorm": True,
        "parts": {"attention": attention, "ffn": {"kind": "mlp", "intermediate_size": 64}},
        "layers": [{"attention": "attention", "ffn": "ffn", "repeat": 2}],
    }
    adapter = {"kind": "pixel_shuffle_mlp", "pixel_shuffle_ratio": 0.5, "intermediate_size": 40, "output_size": 40}
    return {
        "image_size": 16,
        "patch_size": 4,
        "max_tiles": 4,
        "global_tile": True,
        "tower": tower,
        "adapter": adapter,
        "projector": {"kind": "linear", "output_size": HIDDEN},
    }


def any_sides() -> Json:
    """The same tower for images of any sides, whose first block gives the text's first one vectors too."""
    seeing = vision("none")
    seeing["tower"]["position_grid"] = 3
    merger = {"kind": "patch_merger", "spatial_merge_size": 2, "output_size": 40, "eps": 1e-6}
    deepstack = {"blocks": [0], "adapter": {**merger, "norms": "folded"}}
    return {**seeing, "temporal_patch_size": 2, "adapter": merger, "deepstack": deepstack}


def randomised(graph: LayerGraph, seed: int = 0, dtype: str = "fp64") -> Model:
    """A model with every tensor random, norms and biases too, and large enough that every layer matters."""
    model = build(graph, dtype=dtype)
    randomise(model, seed)
    return model


FACTORS = (".factor", ".expert_scale", ".per_expert_scale", ".router.scale", ".layer_scalar")
"""Ends of the names of vectors that multiply, ours and transformers', beside weights of norms."""


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Matrices of deviation 1 / sqrt(inputs), vectors around their neutral value, all from one seed; indices stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.dim() > 1:
            noise *= tensor.shape[-1] ** -0.5
        else:
            is_factor = ("norm" in name and name.endswith("weight")) or name.endswith(FACTORS)
            noise = 0.2 * noise + (1.0 if is_factor else 0.0)
        tensor.copy_(noise)


def token_ids(rows: int, tokens: int, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    """Random token ids [rows, tokens]."""
    return torch.randint(0, vocab, (rows, tokens), generator=torch.Generator().manual_seed(seed))
