"""Parameters and cost of the modules of multi-token prediction, apart from the model that they belong to."""

from typing import NamedTuple

from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.quantization.tensors import Scheme, stored_size
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_shape
from planners.counts.flops import model_flops


class MTPCounts(NamedTuple):
    """Counts over all declared modules; FLOPs are those of one token in every module, without attention pairs.

    `own` parameters are norms, projections and blocks, `copies` those of embedding and head that the checkpoint stores
    again. `active` are those of `own` that a token uses.
    """

    num_modules: int
    own: int
    copies: int
    active: int
    forward_flops_per_token: int

    @property
    def stored(self) -> int:
        """Parameters that a checkpoint has beside the model's."""
        return self.own + self.copies


@kept_with(maxsize=1)
def count_mtp(graph: LayerGraph) -> MTPCounts | None:
    """Parameters and FLOPs of the modules of a graph; None without any. Buffers (routing biases) are not counted.

    FLOPs include the head once a module: each gives logits of its own.
    """
    declared, module = graph.model.text.mtp, mtp_graph(graph)
    if declared is None or module is None:
        return None
    own = [group for group in module.groups if group.first.role not in MTP_SHARED]
    size = {node.role: node.declaration.num_parameters for node in module.nodes if node.role in MTP_SHARED}
    copies = declared.copies_embedding * size["embedding"] + declared.copies_head * size["head"]
    count = declared.num_modules
    return MTPCounts(
        num_modules=count,
        own=count * sum(group.count * group.declaration.num_parameters for group in own),
        copies=count * copies,
        active=count * sum(group.count * group.declaration.num_active_parameters for group in own),
        forward_flops_per_token=count * model_flops(module, Work(1, 1, phase="decode")),
    )


def mtp_weight_bytes(graph: LayerGraph, scheme: Scheme, layout: Layout) -> int:
    """Bytes of the weights that drafting with the first module adds on a device of the layout; 0 without a module.

    An embedding or head that the checkpoint stores again counts again, as vLLM loads it (`deepseek_mtp.py` makes an
    embedding and a `shared_head` of its own); a shared one counts nothing. One module drafts, used again for each
    further token, as engines do.
    """
    declared, module = graph.model.text.mtp, mtp_graph(graph)
    if declared is None or module is None:
        return 0
    is_loaded = {"embedding": declared.copies_embedding, "head": declared.copies_head}
    return sum(
        stored_size(module, node, parameter, shard_shape(node, parameter, layout), scheme).total_bytes
        for node, parameter in module.parameters()
        if is_loaded.get(node.role, True)
    )
