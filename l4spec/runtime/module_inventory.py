"""Inventory of a built module: its tree, and its parameters counted by part."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.modules import LayerModule
from l4spec.runtime.model import Model, ModuleGroup
from l4spec.runtime.quantize.weight import packed_weights


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A line of the module tree: a layer by its name, or all equal blocks of a stack, above their layers."""

    name: str
    depth: int
    class_name: str
    label: str
    """Name of the layer in the spec; empty if it is only the kind."""
    blocks: tuple[int, ...]
    """Indices of the blocks that the row summarizes; empty outside of them."""
    num_tensors: int
    num_parameters: int
    """Of all these blocks together; buffers are tensors but no parameters."""


@dataclass(frozen=True, slots=True)
class ModuleContents:
    """Contents of a module. Parameters are the trainable ones; a tied head has none of its own."""

    rows: tuple[TreeRow, ...]
    num_tensors: int
    num_parameters: int
    num_bytes: int
    by_part: dict[str, int]


def contents_of(model: Model) -> ModuleContents:
    """Walk the module's own tensors; nothing is taken from the declarations but which part a name belongs to."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()} | _packed_sizes(model)
    part_of = {f"{node.id}.{p.name}": str(node.part_of(p)) for node, p in model.graph.parameters()}
    by_part: dict[str, int] = defaultdict(int)
    for name, size in sizes.items():
        by_part[part_of[name]] += size
    rows = tuple(row for name, child in model.named_children() for row in _rows(name, child, model.graph, 0))
    return ModuleContents(rows, len(module_tensors(model)), sum(sizes.values()), module_bytes(model), dict(by_part))


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every persistent tensor of the module by name: parameters and persistent buffers themselves."""
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    for prefix, inner in module.named_modules():
        for name, buffer in inner._buffers.items():
            if buffer is not None and name not in inner._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors


def module_bytes(module: nn.Module) -> int:
    """Bytes of all of them: payloads, scales and zero points of packed weights included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module_tensors(module).values())


def _packed_sizes(module: nn.Module) -> dict[str, int]:
    """Number of packed weights by declared name."""
    return {name: weight.num_weights for name, weight in packed_weights(module).items()}


def _rows(name: str, module: nn.Module, graph: LayerGraph, depth: int) -> Iterator[TreeRow]:
    yield _row(name, module, graph, depth)
    if not isinstance(module, ModuleGroup):
        return
    alike: dict[object, list[tuple[int, nn.Module]]] = {}
    for inner, child in module.named_children():
        if inner.isdigit():
            alike.setdefault(_look(child, graph), []).append((int(inner), child))
        else:
            yield from _rows(inner, child, graph, depth + 1)
    for members in alike.values():
        blocks, block = tuple(index for index, _ in members), members[0][1]
        yield _row("", block, graph, depth + 1, blocks)
        for inner, layer in block.named_children():
            yield _row(inner, layer, graph, depth + 2, blocks)


def _look(block: nn.Module, graph: LayerGraph) -> object:
    """Equal for blocks that look the same: their layers' classes and labels, their tensors' names and shapes."""
    layers = tuple((name, type(child).__name__, _label(child, graph)) for name, child in block.named_children())
    return layers, tuple((name, tuple(tensor.shape)) for name, tensor in module_tensors(block).items())


def _label(module: nn.Module, graph: LayerGraph) -> str:
    if not isinstance(module, LayerModule):
        return ""
    node = graph.by_id[module.node_id]
    return "" if node.label == node.kind else node.label


def _row(name: str, module: nn.Module, graph: LayerGraph, depth: int, blocks: tuple[int, ...] = ()) -> TreeRow:
    count = max(1, len(blocks))
    return TreeRow(
        name=name,
        depth=depth,
        class_name=type(module).__name__ if isinstance(module, LayerModule) else "",
        label=_label(module, graph),
        blocks=blocks,
        num_tensors=count * len(module_tensors(module)),
        num_parameters=count * (sum(p.numel() for p in module.parameters()) + sum(_packed_sizes(module).values())),
    )
