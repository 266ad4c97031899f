"""`CostSheet`: elements and FLOPs of each group of equal layers, independent of hardware."""

from typing import NamedTuple

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import AttentionPairs, Operation, Work


class PassTokens(NamedTuple):
    """One forward pass: text tokens, and image tiles that the vision tower sees in it."""

    text: Work
    num_tiles: int = 0


class CostRow(NamedTuple):
    """The cost of one layer of a group under a workload; `group.count` such layers exist. FLOPs are `model_flops`."""

    group: LayerGroup
    work: Work
    operations: tuple[Operation, ...]
    matmul_flops: int
    attention_flops: int

    @property
    def flops(self) -> int:
        """FLOPs of all layers of the group."""
        return self.group.count * (self.matmul_flops + self.attention_flops)


class CostSheet(NamedTuple):
    """One row per group of equal layers, in graph order."""

    graph: LayerGraph
    workload: PassTokens
    rows: tuple[CostRow, ...]

    @property
    def flops(self) -> int:
        """FLOPs of the whole pass."""
        return sum(row.flops for row in self.rows)


def cost(graph: LayerGraph, workload: PassTokens) -> CostSheet:
    """Cost of a forward pass of `graph` over `workload`, by group of layers."""
    return CostSheet(graph, workload, tuple(row_of_group(graph, group, workload) for group in graph.groups))


def row_of_group(graph: LayerGraph, group: LayerGroup, workload: PassTokens) -> CostRow:
    """The row of one group."""
    work = work_of(graph, group, workload)
    operations = group.declaration.operations(work)
    attention = sum(op.flops for op in operations if isinstance(op, AttentionPairs))
    return CostRow(group, work, operations, sum(op.flops for op in operations) - attention, attention)


def work_of(graph: LayerGraph, group: LayerGroup, workload: PassTokens) -> Work:
    """The work that a group sees: text tokens, or for vision one sequence of patches or image tokens per tile."""
    stream, vision = group.first.stream, graph.model.vision
    if stream == "text" or vision is None:
        return workload.text
    if stream == "patch":
        return Work(workload.num_tiles, vision.patch_embedding.num_tokens, phase=workload.text.phase)
    return Work(workload.num_tiles, vision.num_tokens_per_tile, phase=workload.text.phase)
