"""FLOPs that our module executes, exactly as a FLOP counter counts them.

More than `model_flops` where dense blocks of attention compute pairs that the mask forbids, where a cached latent is
expanded again, and in training, where the backward pass is counted operation by operation instead of as twice the
forward pass.
"""

from dataclasses import dataclass

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import Operation, Work
from planners.counts.cost_sheet import PassTokens, work_of


@dataclass(frozen=True, slots=True)
class ExecutedRow:
    """Executed operations of one of `group.count` equal layers. `backward_flops` is 0 outside training."""

    group: LayerGroup
    work: Work
    operations: tuple[Operation, ...]
    forward_flops: int
    backward_flops: int

    @property
    def flops_per_layer(self) -> int:
        """FLOPs of one layer, forward and backward."""
        return self.forward_flops + self.backward_flops

    @property
    def flops(self) -> int:
        """FLOPs of all layers of the group."""
        return self.group.count * self.flops_per_layer


def executed_rows(graph: LayerGraph, text: Work, num_tiles: int = 0) -> tuple[ExecutedRow, ...]:
    """One row per group of equal layers that run, in graph order: the vision tower only where there are tiles.

    With `text.phase == "train"` the rows hold forward and backward of all parameters, without recomputation.
    """
    groups = (group for group in graph.groups if num_tiles or group.first.scope == "text")
    return tuple(_row(graph, group, PassTokens(text, num_tiles)) for group in groups)


def executed_flops(graph: LayerGraph, text: Work, num_tiles: int = 0) -> int:
    """FLOPs of one pass over `text` and `num_tiles` image tiles, as our module runs it."""
    return sum(row.flops for row in executed_rows(graph, text, num_tiles))


def _row(graph: LayerGraph, group: LayerGroup, workload: PassTokens) -> ExecutedRow:
    work = work_of(graph, group, workload)
    operations = group.declaration.executed_operations(work)
    is_training = workload.text.phase == "train"
    return ExecutedRow(
        group,
        work,
        operations,
        forward_flops=sum(op.flops for op in operations),
        backward_flops=sum(op.backward_flops for op in operations) if is_training else 0,
    )
