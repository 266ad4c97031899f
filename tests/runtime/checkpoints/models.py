"""Small models for checkpoint tests, with every weight random, norms and biases too."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.model import Model
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
}
"""A shipped spec of each Hugging Face family."""


@cache
def small_graph(family: str) -> LayerGraph:
    """The layer graph of a family's spec, scaled down where it is not tiny already."""
    spec = l4spec.load(FAMILIES[family])
    return l4spec.compile(spec if FAMILIES[family].startswith("tiny/") else scale_spec(spec, "tiny"))


def randomize(model: Model, seed: int = 0) -> Model:
    """Fill every tensor with noise around what it holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype), alpha=0.05)
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
