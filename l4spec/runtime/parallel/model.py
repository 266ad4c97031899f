"""One rank's model: it runs like the whole one, on its own sequences, together with the other ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.lm_head.parallel import VocabHead
from l4spec.layers.torch_common import LayerModule
from l4spec.layers.torch_parallel import Axis, gather
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.loss import vocab_parallel_cross_entropy
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.runtime.parallel.rank import Shard
from l4spec.runtime.parallel.training import finish_gradients, held_region
from l4spec.runtime.sampling import Sampling, choose
from l4spec.sharding.rules import Region


class RankModel(Model):
    """The part of a model that one rank of a mesh holds; made by `l4spec.distribute`.

    `forward` takes this rank's own sequences (`own_rows`) and gives their logits, the same on all tensor-parallel
    ranks. `nodes` are the layers of its pipeline stage, narrowed to what it computes of them; `shards` says what it
    holds of each tensor, `summed_gradients` over which ranks the gradients of some have to be added up.
    """

    def __init__(
        self,
        graph: LayerGraph,
        modules: dict[str, LayerModule],
        nodes: tuple[LayerNode, ...],
        mesh: Mesh,
        shards: dict[str, Shard],
        summed_gradients: dict[str, Axis],
    ) -> None:
        super().__init__(graph, modules, nodes)
        self.mesh = mesh
        self.shards = shards
        self.summed_gradients = summed_gradients
        self._heads = [module for module in modules.values() if isinstance(module, VocabHead)]

    def own_rows(self, batch: Tensor) -> Tensor:
        """Of a batch that all ranks know, [sequences, ...], the sequences that this rank runs.

        Raises ValueError where they cannot be divided among the dp x ep ranks equally.
        """
        data = self.mesh.data
        if batch.shape[0] % data.size:
            raise ValueError(f"{batch.shape[0]} sequences cannot be divided among {data.size} ranks (dp x ep)")
        return batch.chunk(data.size)[data.index]

    def choose_next(self, logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
        """The next token of every sequence, the same on all ranks: a draw sees all logits, as on one process."""
        data = self.mesh.data
        if sampling.temperature == 0:
            return gather(choose(logits, sampling, generator), data).flatten()
        return choose(gather(logits, data).flatten(0, 1), sampling, generator)

    def finish_backward(self) -> None:
        """Add up the gradients that tensor-parallel ranks hold parts of, and take means over data-parallel ranks.

        To be called behind every backward pass whose gradients are used, on all ranks.
        """
        finish_gradients(self.named_parameters(), self.summed_gradients, self.mesh.data.size)

    def held_region(self, name: str) -> Region:
        """What this rank holds of the whole tensor of this name; with FSDP2, what is left to it of the first dim."""
        return held_region(self.get_tensor(name), self.shards[name].region)

    def get_tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its name."""
        owner, _, leaf = name.rpartition(".")
        found: Tensor = getattr(self.get_submodule(owner), leaf)
        return found

    def loss(self, input_ids: Tensor, labels: Tensor, **inputs: Any) -> Tensor:
        """Mean cross entropy of this rank's sequences; `labels` [batch, tokens] follow each token, -100 counts not.

        Logits stay divided along the vocabulary. `inputs` are those of `forward`.
        """
        with self._divided_logits():
            logits = self(input_ids, **inputs)
        tp = self.mesh.axis("tp")
        held = self._heads[0].held if self._heads else range(logits.shape[-1])
        return vocab_parallel_cross_entropy(logits, labels, held, tp if self._heads else Axis())

    @contextmanager
    def _divided_logits(self) -> Iterator[None]:
        for head in self._heads:
            head.gathers = False
        try:
            yield
        finally:
            for head in self._heads:
                head.gathers = True
