"""Sequence parallelism: which layers see a rank's share of the tokens, and which see all of them.

Between the layers that tensor parallelism cuts, its ranks would all do the same with the same tokens. With sequence
parallelism (arXiv:2205.05198, section 4) each does it with its own share of a sequence's tokens: residual streams,
norms and sums. A layer that is cut gathers all tokens, and the sum of its ranks' outputs is scattered.
"""

from typing import Literal

from l4spec.graph.layer_graph import LayerNode
from l4spec.layers import KINDS
from l4spec.sharding.rules import MESH_AXIS

TokenUse = Literal["own", "embedding", "cut", "head", "whole"]
"""`own`: token by token, on a rank's share. `embedding`: all ids in, a share of the sum out. `cut`: gathered in, a
share of the sum out. `head`: gathered in, logits of all tokens out. `whole`: every rank does the same with all."""

LAYER_INPUT = "normed_input"
"""Name in declarations of the saved buffer of a layer's own input."""


def token_use(node: LayerNode) -> TokenUse:
    """Use of tokens by a layer of the language model when they are divided among tensor-parallel ranks."""
    slot, declared = KINDS[node.kind].slot, node.declaration
    if slot == "norm" or (slot == "wiring" and all(shape[:2] == declared.output[:2] for shape in declared.inputs)):
        return "own"
    if node.role == "embedding" and is_cut(node):
        return "embedding"
    if node.role == "head":
        return "head"
    return "cut" if node.role in ("attention", "ffn") and is_cut(node) else "whole"


def is_cut(node: LayerNode) -> bool:
    """True if tensor parallelism cuts any tensor of a layer."""
    return any(MESH_AXIS.get(dim.axis) == "tp" for p in node.declaration.parameters for dim in p.dims)
