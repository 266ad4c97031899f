"""One rank's model: it runs like the whole one, on its own sequences, together with the other ranks."""

from torch import Tensor

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.torch_common import LayerModule
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.runtime.parallel.rank import Shard


class RankModel(Model):
    """The part of a model that one rank of a mesh holds; made by `l4spec.distribute`.

    `forward` takes this rank's own sequences (`own_rows`) and gives their logits, the same on all tensor-parallel
    ranks. `nodes` are the layers of its pipeline stage, narrowed to what it computes of them; `shards` says what it
    holds of each tensor.
    """

    def __init__(
        self,
        graph: LayerGraph,
        modules: dict[str, LayerModule],
        nodes: tuple[LayerNode, ...],
        mesh: Mesh,
        shards: dict[str, Shard],
    ) -> None:
        super().__init__(graph, modules, nodes)
        self.mesh = mesh
        self.shards = shards

    def own_rows(self, batch: Tensor) -> Tensor:
        """Of a batch that all ranks know, [sequences, ...], the sequences that this rank runs."""
        return batch.chunk(self.mesh.data.size)[self.mesh.data.index]
