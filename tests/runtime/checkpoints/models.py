"""Small models for checkpoint tests, with every weight random, norms and biases too."""

from functools import cache
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.model import Model
from l4spec.spec.origin import HuggingFaceSpec
from l4spec.spec.scale import scale_spec

FAMILIES = {
    "llama4": "tiny/scout",
    "llama4_text": "mobilellm-r1-950m",
    "llama": "compare/llama-3.1-8b",
    "mistral": "compare/mistral-nemo-2407",
    "mixtral": "compare/mixtral-8x7b",
    "deepseek_v3": "tiny/deepseek",
    "gemma2": "compare/gemma-2-27b",
    "qwen2": "compare/qwen2.5-7b",
    "qwen3": "compare/qwen3-8b",
    "qwen3_moe": "compare/qwen3-30b-a3b",
    "gpt_oss": "compare/gpt-oss-20b",
    "minimax_m2": "compare/minimax-m2.5",
    "glm4_moe": "compare/glm-4.5",
    "olmo2": "compare/olmo-2-7b",
    "olmoe": "compare/olmoe-1b-7b",
    "qwen2_moe": "compare/qwen1.5-moe-a2.7b",
    "phi3": "compare/phi-4",
    "deepseek_v2": "compare/deepseek-v2-lite",
    "gemma3_text": "compare/gemma-3-27b",
    "qwen3_next": "compare/qwen3-next-80b-a3b",
    "qwen3_5_text": "compare/qwen3.5-27b",
    "qwen3_5_moe_text": "compare/qwen3.5-35b-a3b",
    "deepseek_v32": "compare/deepseek-v3.2",
    "glm_moe_dsa": "compare/glm-5.1",
    "mimo_v2_flash": "compare/mimo-v2-flash",
    "nemotron_h": "compare/nemotron-3-super-120b-a12b",
    "gemma4_text": "compare/gemma-4-26b-a4b",
    "deepseek_v4": "compare/deepseek-v4-flash",
    "kimi_linear": "compare/kimi-linear-48b-a3b",
    "smollm3": "compare/smollm3-3b",
    "qwen2_5_vl": "compare/qwen2.5-vl-7b",
    "qwen3_vl": "compare/qwen3-vl-4b",
    "qwen3_vl_moe": "compare/qwen3-vl-235b-a22b",
}
"""A shipped spec of each Hugging Face family that is read whole and that transformers has."""
AMBIGUOUS: dict[str, dict[str, JsonValue]] = {
    "phi3": {"pad_token_id": 0},
    "qwen3_next": {},
    "glm_moe_dsa": {},
    "kimi_linear": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": 0},
}
"""Families whose models another family, which an export tries before, can say as well, with fields that they need; or
whose usual padding is no token of a small vocabulary."""
CHANGED = {
    "deepseek_v2": ["text.parts.attention.num_heads=8"],  # which its config wants to divide the width
    "mimo_v2_flash": [  # whose windows have twice as many KV heads, which rounding would make as many
        *("text.parts.full.num_heads=4", "text.parts.full.num_kv_heads=1"),
        *("text.parts.sliding.num_heads=4", "text.parts.sliding.num_kv_heads=2"),
    ],
    "gemma4_text": [  # whose layers have as many query heads, whatever their KV heads
        *("text.parts.full.num_heads=4", "text.parts.full.num_kv_heads=2"),
        *("text.parts.sliding.num_heads=4", "text.parts.sliding.num_kv_heads=2", "text.parts.moe.num_experts=12"),
    ],
    "kimi_linear": ["text.parts.moe.num_experts=12", "text.parts.moe.num_experts_per_token=4"],
    "nemotron_h": ["text.parts.moe.num_experts=12", "text.parts.moe.num_experts_per_token=4"],  # 512 take minutes
}
"""What is overridden in the spec of a family before it is scaled down."""
ALSO_CALLED = {"kimi_linear": (".block_sparse_moe.", ".mlp.")}
"""Steps of stored names that transformers writes in layers where published checkpoints have the second one."""
TURNED = ("qwen3_vl_moe",)
"""Families whose published stacks of experts transformers turns, and saves turned."""
SEEING = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
"""Families with a tower around the text of another, whose spec is shipped (tests/runtime/test_oracle_qwen_vl.py)."""
OTHER_FAMILIES = {
    "kimi_k2": "no class of its own in transformers: it is DeepseekV3ForCausalLM",
    "nemotron-nas": "no class in transformers, but code beside its weights",
}
"""Families that are read whole, but not found in transformers by their name."""


@cache
def small_graph(family: str) -> LayerGraph:
    """The layer graph of a family's spec, scaled down where it is not tiny already."""
    spec = l4spec.load(FAMILIES[family], CHANGED.get(family, []))
    spec = spec if FAMILIES[family].startswith("tiny/") else scale_spec(spec, "tiny")
    if family in AMBIGUOUS:
        origin = HuggingFaceSpec(model_type=family, fields=AMBIGUOUS[family])
        spec = spec.model_copy(update={"huggingface": origin})
    return l4spec.compile(spec)


def randomize(model: Model, seed: int = 0) -> Model:
    """Fill every tensor with noise around what it holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype), alpha=0.05)
            else:  # indices of experts
                tensor.copy_(tensor.flip(0))
    return model


def small_model(family: str, dtype: str = "fp32", seed: int = 0) -> Model:
    """A small model of a family, every tensor random."""
    return randomize(l4spec.build(small_graph(family), dtype=dtype), seed)


def blank_model(family: str, dtype: str = "fp32") -> Model:
    """A model of the same shapes whose tensors are all zero."""
    model = l4spec.build(small_graph(family), dtype=dtype, seed=None)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    return model


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Copies of a model's tensors by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Every bit equal."""
    assert left.keys() == right.keys()
    different = [name for name in left if left[name].dtype != right[name].dtype or not left[name].equal(right[name])]
    assert not different


def save_small(family: str, folder: Path, dtype: str = "fp32") -> Model:
    """Save a small model of a family to `folder` and return it."""
    model = small_model(family, dtype)
    l4spec.save_checkpoint(model, folder)
    return model
