"""Models of the speed benchmarks: one of ours and the reference of `transformers` with the same weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import l4spec
from l4spec.huggingface import export_config
from l4spec.layers.declaration import Work
from l4spec.layers.moe.router import Router
from l4spec.runtime.build import build
from l4spec.runtime.checkpoints.hub_names import hub_layout
from l4spec.runtime.checkpoints.regions import part
from l4spec.runtime.model import Model
from l4spec.spec.model import ModelSpec

FOLDER = Path(__file__).parent / "models"
ALL_LOCAL = "text.layers=[{attention: local, ffn: moe, repeat: 8}]"
"""Override that leaves only chunked attention."""
TINY = (
    "text.hidden_size=64",
    "text.vocab_size=128",
    "text.parts.local.head_dim=8",
    "text.parts.global.head_dim=8",
    "text.parts.dense.intermediate_size=64",
    "text.parts.moe.intermediate_size=32",
)
"""Overrides for a rehearsal that takes seconds."""


def spec_of(name: str, overrides: Sequence[str] = ()) -> ModelSpec:
    """The spec `models/{name}.yaml` with overrides."""
    return l4spec.load(FOLDER / f"{name}.yaml", overrides)


def ours(spec: ModelSpec, device: str, dtype: str) -> Model:
    """Our model with random weights that depend on their names alone, without gradients."""
    return build(l4spec.compile(spec), device, dtype).requires_grad_(requires_grad=False)


def reference(model: Model) -> Any:
    """`Llama4ForCausalLM` as transformers runs it by default, with the weights of `model` copied tensor by tensor."""
    import transformers

    spec = model.graph.model.spec
    config = transformers.Llama4TextConfig.from_dict(export_config(spec))
    with torch.device("meta"):
        other: Any = transformers.Llama4ForCausalLM(config)
    other.to(dtype=model.dtype).to_empty(device=model.device)
    other.model.rotary_emb = type(other.model.rotary_emb)(config).to(model.device)
    layout = hub_layout(model.graph, config.model_type)
    assert layout is not None
    tensors = model.state_dict()
    with torch.no_grad():
        for stored in layout.saved():
            target = other.get_parameter(stored.name)
            for piece in stored.pieces:
                source = part(tensors[piece.tensor], piece.region)
                part(target, piece.stored_region).copy_(source.mT if piece.transposed else source)
    return other.eval().requires_grad_(requires_grad=False)


def token_ids(model: Model, rows: int, tokens: int) -> Tensor:
    """Random tokens [rows, tokens], always the same.

    With seed 1 a router scores two experts within 1e-6 of each other: any other order of sums chooses the other.
    """
    generator = torch.Generator().manual_seed(2)
    return torch.randint(model.graph.model.text.head.vocab_size, (rows, tokens), generator=generator).to(model.device)


def relative_difference(got: Tensor, reference: Tensor) -> float:
    """Largest difference over largest value."""
    return float((got.float() - reference.float()).abs().max() / reference.float().abs().max())


@dataclass(slots=True)
class Routing:
    """Rows of each expert of each layer in one call, by node id."""

    rows: dict[str, list[int]]

    @classmethod
    def of(cls, model: Model, *inputs: Any, **options: Any) -> "Routing":
        """Run the model once and see where its tokens go."""
        counts: dict[str, list[int]] = {}
        handles = [_watch(name, module, counts) for name, module in _routers(model)]
        with torch.no_grad():
            model(*inputs, **options)
        for handle in handles:
            handle.remove()
        return cls(counts)

    def num_touched(self, node_id: str) -> int:
        """Experts of a layer that got a row."""
        return sum(rows > 0 for rows in self.rows[node_id])


def _routers(model: Model) -> Iterator[tuple[str, Router]]:
    for name, module in model.named_modules():
        if isinstance(module, Router):
            yield name.removesuffix(".router"), module


def _watch(name: str, router: Router, counts: dict[str, list[int]]) -> Any:
    def see(module: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        counts[name] = output[1].flatten().bincount(minlength=router.spec.num_experts).tolist()

    return router.register_forward_hook(see)


def forward_flops(model: Model, rows: int, tokens: int) -> int:
    """FLOPs that the mathematics of a forward pass needs, logits of all tokens and attended pairs included."""
    work = Work(rows, tokens)
    return sum(op.flops for node in model.graph.nodes for op in node.declaration.operations(work))


def touched_bytes(model: Model, routing: Routing) -> int:
    """Bytes of weights that one decode step reads: everything but the embedding, of experts those that got a row."""
    total = 0
    for node in model.graph.nodes:
        for parameter in node.declaration.parameters:
            if parameter.role == "embedding":
                continue
            numel = parameter.numel
            if parameter.num_active is not None:
                numel = numel // parameter.shape[0] * routing.num_touched(node.id)
            total += numel
    return total * model.dtype.itemsize
