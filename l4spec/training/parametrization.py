"""Factors of initial scales, rates, decay and epsilon for every tensor, from which of its declared dims grow.

The kind of a layer does not matter: a declaration names the axis of each dim, and the base model's declaration of the
same tensor gives the growth of each. With r_in and r_out the growth of the contracted dim and of the other one:

    input-like   (r_in = 1)            deviation 1             rate 1
    hidden       (both grow)           deviation r_in^-1/2     rate 1 / r_in
    output-like  (r_out = 1, r_in > 1) deviation 1 / r_in      rate 1 / r_in

Axes that count things (experts, vocabulary) are no widths. muP (arXiv:2203.03466, table 8) and CompleteP
(arXiv:2505.01618, table 1) multiply outputs of head and residual branches; here these factors are moved into the
weights, which is the same function and, for Adam, the same steps (arXiv:2203.03466, lemma J.1): a factor f on a product
is a factor f on deviation and rate. So modules, checkpoints and exports know nothing of it. CompleteP with alpha = 1
divides the blocks' contributions to the residual stream, their biases included, by the growth of depth. Decoupled decay
keeps rate x decay. Epsilon follows the size of gradients: 1 / growth of the output dim, and in blocks 1 / depth for all
but the tensors that hold the folded factor, whose gradients it does not scale. Over batch and tokens, Complete(d)P's
rule for Adam's noise (arXiv:2512.22382): rate x sqrt(batch growth / token growth).

Left out: the decay of Adam's moments over batch and tokens, tied embeddings (their head needs a factor of its own) and
blocks that norm their output (their scale has no effect), which are refused.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter

Rule = Literal["standard", "mup", "completedp"]
STREAM = "hidden"
COUNTS = ("experts", "router", "vocab", "gate")
"""Axes that count choices: they may grow, and are no widths."""


@dataclass(frozen=True, slots=True)
class TensorFactors:
    """Factors on one tensor's initial deviation, learning rate, decay and epsilon."""

    deviation: float = 1.0
    rate: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True, slots=True)
class RunGrowth:
    """Growth relative to the base run: of the sequences of a step, and of the tokens of a phase."""

    batch: float = 1.0
    tokens: float = 1.0

    @property
    def rate(self) -> float:
        """The factor on every rate: Adam's steps have the noise of a batch, and add up over the steps."""
        return math.sqrt(self.batch / self.tokens)


def tensor_factors(graph: LayerGraph, base: LayerGraph, rule: Rule) -> Mapping[str, TensorFactors]:
    """By the names of the trained tensors. Raises UserError for models that have no such tensors in common."""
    names = {f"{node.id}.{p.name}": (node, p) for node, p in graph.parameters() if not p.tied_to and not p.buffer}
    if rule == "standard":
        return dict.fromkeys(names, TensorFactors())
    _check(graph, rule)
    known = _by_place(base)
    depths = _depths(graph, base) if rule == "completedp" else {}
    factors = {}
    for name, (node, parameter) in names.items():
        there = known.get(_place(node, parameter))
        if there is None or len(there.dims) != len(parameter.dims):
            raise UserError(f"the base model has no tensor like {name}", hint="a base differs in sizes alone")
        depth = depths.get(node.scope, 1.0) if node.layer is not None and node.module is None else 1.0
        factors[name] = _factors(node, parameter, there, depth)
    return factors


def _place(node: LayerNode, parameter: Parameter) -> tuple[str, str, str, str]:
    return (node.scope, node.role, node.label, parameter.name)


def _by_place(graph: LayerGraph) -> dict[tuple[str, str, str, str], Parameter]:
    """Tensors of the first layer that has them: equal parts have equal sizes in every layer."""
    places: dict[tuple[str, str, str, str], Parameter] = {}
    for node, parameter in graph.parameters():
        places.setdefault(_place(node, parameter), parameter)
    return places


def _check(graph: LayerGraph, rule: Rule) -> None:
    if graph.model.text.head.tied:
        raise UserError(f"{rule} needs a head of its own", hint="text.tie_embeddings=false")
    forms = {block.form for block in graph.model.text.stack.blocks}
    if rule == "completedp" and forms - {"pre_norm", "parallel"}:
        raise UserError(f"completedp scales what blocks add, which {', '.join(sorted(forms))} blocks norm again")


def _depths(graph: LayerGraph, base: LayerGraph) -> dict[str, float]:
    """Growth of the number of blocks, by scope."""

    def blocks(of: LayerGraph) -> Counter[str]:
        return Counter(scope for scope, _ in {(n.scope, n.layer) for n in of.nodes if n.layer is not None})

    before = blocks(base)
    return {scope: number / before[scope] for scope, number in blocks(graph).items() if before[scope]}


def _factors(node: LayerNode, parameter: Parameter, there: Parameter, depth: float) -> TensorFactors:
    """See the module's table; vectors (norms, biases) and input-like tensors keep their rate."""
    enters = _enters_stream(node, parameter)
    adds, inside = (depth, 1.0) if enters else (1.0, depth)
    grown = [
        1.0 if dim.axis in COUNTS else dim.size / before.size
        for dim, before in zip(parameter.dims, there.dims, strict=True)
    ]
    eps = 1 / inside / max((size for index, size in enumerate(grown) if index != parameter.input_dim), default=1.0)
    into = 1.0 if parameter.input_dim is None else grown[parameter.input_dim]
    if into == 1:
        return TensorFactors(1 / adds, 1 / adds, adds, eps)
    out = max(size for index, size in enumerate(grown) if index != parameter.input_dim)
    deviation = into**-0.5 if out != 1 else 1 / into
    return TensorFactors(deviation / adds, 1 / into / adds, into * adds, eps)


def _enters_stream(node: LayerNode, parameter: Parameter) -> bool:
    """True if a tensor's product, or a bias, is added to the residual stream: an output of its width, in a block."""
    if node.layer is None or node.role.endswith("norm"):
        return False
    if parameter.input_dim is None:
        return parameter.role == "bias" and parameter.dims[-1].axis == STREAM
    out = [dim.axis for index, dim in enumerate(parameter.dims) if index != parameter.input_dim]
    return STREAM in out and parameter.dims[parameter.input_dim].axis != STREAM
