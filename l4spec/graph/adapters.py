"""Low-rank adapters (LoRA, arXiv:2106.09685): the tensors that have one, and the tensors of an adapter.

To y = x W^T of a frozen tensor W [out, in] an adapter of rank r adds x A^T B^T with A [r, in] and B [out, r], which are
trained; a stack of experts has a pair per expert. A and B are declared with the dims of W, so that every parallel
layout cuts them by the rules of the base: tp cuts B of a tensor that it cuts along its outputs, and A of one that it
cuts along its inputs. Adapters are of the language model's blocks: embedding, head, routers and vision have none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from l4spec.errors import Problem
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.common.frozen import FrozenMatmul
from l4spec.layers.declaration import Declaration, Dim, Matmul, Parameter, Work

DEFAULT_TARGETS = ("linear",)
"""Every linear layer of the blocks: with fewer, adapters do not reach full finetuning (arXiv:2305.14314, section 4)."""
GROUPS = ("linear", "attention", "ffn", "experts")
"""Groups of tensors: all linear layers, those of attention, of dense and shared feed-forward, and stacks of experts."""


class Lora(NamedTuple):
    """Adapters of rank `rank` on `targets`: groups of tensors, or ends of tensors' names.

    With `dropout` each adapter drops a part of its input, and keeps a mask.
    """

    rank: int
    targets: tuple[str, ...] = DEFAULT_TARGETS
    dropout: bool = False


class Adapted(NamedTuple):
    """A product with a frozen tensor that has an adapter; `rows` vectors go through it."""

    base: Parameter
    rows: int
    down: Parameter
    up: Parameter

    @property
    def matmuls(self) -> tuple[Matmul, Matmul]:
        """Products of the adapter: x A^T, and that B^T."""
        return Matmul(self.down.name, self.rows, self.down), Matmul(self.up.name, self.rows, self.up)


def adapted(declaration: Declaration, work: Work, lora: Lora) -> tuple[Adapted, ...]:
    """The products of a layer that have an adapter, in a pass over `work`."""
    return tuple(
        Adapted(op.weight, op.rows, *pair_of(op.weight, lora.rank))
        for op in declaration.operations(work)
        if isinstance(op, Matmul) and _is_trainable(op) and _is_target(op.weight, lora.targets)
    )


def pairs_on(node: LayerNode, lora: Lora) -> tuple[Adapted, ...]:
    """The adapters of a layer, by products of some tokens."""
    return adapted(node.declaration, _SOME, lora) if has_place(node) else ()


def adapters_of(node: LayerNode, lora: Lora) -> tuple[Parameter, ...]:
    """The tensors of a layer's adapters."""
    return tuple(tensor for pair in pairs_on(node, lora) for tensor in (pair.down, pair.up))


def count_adapters(graph: LayerGraph, lora: Lora) -> int:
    """Parameters of all adapters of a model."""
    return sum(group.count * sum(t.numel for t in adapters_of(group.first, lora)) for group in graph.groups)


def has_place(node: LayerNode) -> bool:
    """True if a layer is in a block of the language model."""
    return node.scope == "text" and node.layer is not None


def pair_of(base: Parameter, rank: int) -> tuple[Parameter, Parameter]:
    """The tensors A and B of a base's adapter."""
    *stack, out, into = base.dims
    name, width = short_name(base), Dim("rank", rank)
    down = replace(base, name=f"{name}.lora_a", dims=(*stack, width, into), role="other")
    return down, replace(base, name=f"{name}.lora_b", dims=(*stack, out, width), role="other")


def short_name(parameter: Parameter) -> str:
    """Name of a tensor as `q_proj` or `experts.up_proj`."""
    return parameter.name.removesuffix(".weight")


def target_problems(graph: LayerGraph, targets: Sequence[str], path: str) -> Iterator[Problem]:
    """A problem for each target that names no tensor of a block; its hint lists those that do."""
    names = _names(graph)
    groups = [group for group in GROUPS if any(_is_target(p, (group,)) for p in names.values())]
    for target in targets or ("",):
        if not any(_is_target(parameter, (target,)) for parameter in names.values()):
            hint = f"one or more of {', '.join((*groups, *sorted(names)))}"
            yield Problem(
                f"no linear layer or stack of experts of {graph.name} is called {target!r}", path=path, hint=hint
            )


def lora_of(rank: int | None, targets: str) -> Lora | None:
    """Adapters of a rank on targets as `q_proj,v_proj`; None without a rank."""
    return None if rank is None else Lora(rank, tuple(part.strip() for part in targets.split(",")))


def _names(graph: LayerGraph) -> dict[str, Parameter]:
    """Tensors that can have an adapter, by their short names."""
    every = (op for group in graph.groups if has_place(group.first) for op in group.declaration.operations(_SOME))
    return {short_name(op.weight): op.weight for op in every if isinstance(op, Matmul) and _is_trainable(op)}


_SOME = Work(1, 1 << 12, phase="train")
"""Enough tokens for every operation of a training step."""


def _is_trainable(op: Matmul) -> bool:
    """True for a linear layer or a stack of experts that gradients reach."""
    return op.weight.role in ("linear", "expert") and not isinstance(op, FrozenMatmul)


def _is_target(parameter: Parameter, targets: Sequence[str]) -> bool:
    name, linear = short_name(parameter), parameter.role == "linear"
    groups = {
        "linear": linear,
        "attention": linear and parameter.part == "attention",
        "ffn": linear and parameter.part in ("dense_ffn", "shared_expert"),
        "experts": parameter.role == "expert",
    }
    return any(groups.get(target, f".{name}".endswith(f".{target}")) for target in targets)
