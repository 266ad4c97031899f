"""Memory of modules of multi-token prediction in training, on a device of the last stage, beside the model's layers.

Embedding and head are the model's; of several stages the last one has a copy of the embedding. Each module is a block
of its own for ZeRO. Its logits are kept until its backward pass, so that those of all depths are there at once.
"""

from dataclasses import dataclass
from math import prod

from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.graph.trainable import trained_names
from l4spec.graph.with_modules import with_modules
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_shape
from planners.device.activations import ACTIVATION_BYTES, KeptOfLayer, buffer_bytes


@dataclass(frozen=True, slots=True)
class ModuleParams:
    """(dense, routed-expert) parameters of each module on one device before ZeRO, and those of the embedding."""

    modules: tuple[tuple[int, int], ...]
    embedding: int

    def on_device(self, *, several_stages: bool) -> tuple[int, int]:
        """(dense, routed-expert) parameters that a device of the last stage has of them."""
        dense, experts = (sum(each[part] for each in self.modules) for part in (0, 1))
        return dense + (self.embedding if several_stages else 0), experts


@kept_with(maxsize=512)
def module_params(graph: LayerGraph, tp: int, ep: int, trainable: tuple[str, ...] = ()) -> ModuleParams:
    """Parameters of the declared modules on a device; with `trainable`, those that its selectors name."""
    whole, layout = with_modules(graph), Layout(tp=tp, ep=ep)
    names = trained_names(whole, trainable) if trainable else None
    counts: dict[int, tuple[int, int]] = {}

    def sizes(node: LayerNode) -> tuple[int, int]:
        dense = experts = 0
        for parameter in node.declaration.parameters:
            if parameter.buffer or (names is not None and f"{node.id}.{parameter.name}" not in names):
                continue
            size = prod(shard_shape(node, parameter, layout))
            dense, experts = (dense, experts + size) if parameter.is_per_expert else (dense + size, experts)
        return dense, experts

    for node in whole.nodes:
        if node.module is not None:
            (dense, experts), (more, more_experts) = counts.get(node.module, (0, 0)), sizes(node)
            counts[node.module] = (dense + more, experts + more_experts)
    embedding = next(node for node in graph.nodes if node.role == "embedding")
    return ModuleParams(tuple(counts[index] for index in sorted(counts)), sizes(embedding)[0])


@kept_with(maxsize=512)
def module_kept(graph: LayerGraph, tp: int, ep: int, checkpointing: Checkpointing) -> tuple[KeptOfLayer, ...]:
    """Bytes of one token that each module keeps for the backward pass, and makes again there; without its logits.

    The hidden state that a module reads is kept anyway: by the model's head, or by the last norm of the module before,
    unless that is made again. `full` keeps it, the embedding, and what the head is given.
    """
    declared, module = graph.model.text.mtp, mtp_graph(graph)
    if declared is None or module is None:
        return ()
    layout, every, core = Layout(tp=tp, ep=ep), 0, 0
    for group in module.groups:
        if group.first.role in (*MTP_SHARED, "hidden_norm"):
            continue
        buffers = group.declaration.saved(Work(1, 1))
        every += group.count * buffer_bytes(group, buffers, layout)
        again = tuple(buffer for buffer in buffers if buffer.name in group.declaration.recomputed)
        core += group.count * buffer_bytes(group, again, layout)
    stream = module.hidden_size * ACTIVATION_BYTES
    if checkpointing == "full":
        first, further = KeptOfLayer(2 * stream, every), KeptOfLayer(3 * stream, every)
        return (first, *(further for _ in range(declared.num_modules - 1)))
    less = core if checkpointing == "selective" else 0
    return (KeptOfLayer(every + stream - less, less),) * declared.num_modules


__all__ = ["ModuleParams", "module_kept", "module_params"]
