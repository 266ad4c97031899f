"""Quantizing a model: the planner's rule tables, tensor by tensor, on the modules that hold the tensors."""

from collections.abc import Iterator

import torch
from torch import nn

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.common.modules import LayerModule
from l4spec.layers.declaration import Parameter
from l4spec.layers.moe.module import Experts
from l4spec.progress import Progress
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.quantization.tensors import fitted, scheme_of, stored_tensors, target_of
from l4spec.runtime.model import Model
from l4spec.runtime.quantize.experts import QuantizedExperts
from l4spec.runtime.quantize.weight import PackedWeight, QuantizedLinear
from l4spec.spec.storage import BlockLaw, PlainLaw, ScaledLaw

Law = PlainLaw | ScaledLaw | BlockLaw
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Formats of plain tensors and of computation."""
_BITS = {"int": (4, 8), "e4m3": (8,), "e2m1": (4,), "nf4": ()}
"""Bit widths of packed codes, by number format."""


def quantize(model: Model, scheme: Quantization | str, *, progress: Progress | None = None) -> Model:
    """Quantize `model` by `scheme`, in place, layer by layer; returns the same model.

    `scheme` is one of `l4spec ls quantization`, a path, or a scheme of either with other groups (`w4a16-g32`). Weights
    are rounded to the nearest code. Tensors that the scheme leaves plain are cast to its number format. The model is
    for inference afterwards: none of its tensors is trainable. Raises UserError, before anything is changed, for a
    scheme that cannot store a tensor of the model or that no module here runs.
    """
    table = scheme_named(scheme) if isinstance(scheme, str) else scheme
    if model.quantization is not None:
        raise UserError(f"the model is quantized already, as {model.quantization.name}", hint="build it again")
    dtype = DTYPES[number_format(model.graph, table)]
    require_packable(model, table)
    for done, node in enumerate(model.graph.nodes, start=1):
        quantize_layer(model.graph, node, model.get_submodule(node.id), table, dtype)
        if progress:
            progress(done, len(model.graph.nodes))
    model.requires_grad_(False)
    model.quantization = table
    return model


def number_format(graph: LayerGraph, table: Quantization) -> str:
    """Format of unpacked tensors and of activations. Raises UserError if there is more than one.

    Also raises it for blocks of GGUF and other laws that no module here runs, and for tensors the scheme cannot store.
    """
    reasons: dict[str, str] = {}
    formats: set[str] = set()
    for node, parameter in graph.parameters():
        law = table.law_for(target_of(graph, node, parameter))
        reason = _why_not(law, parameter)
        if reason:
            reasons.setdefault(reason, f"{node.id}.{parameter.name}")
        if isinstance(law, PlainLaw):
            formats.add(law.dtype)
    if len(formats) > 1 and not reasons:
        reasons[f"plain tensors in {' and '.join(sorted(formats))}, where modules compute in one format"] = ""
    if reasons:
        hint = "the planner weighs it; `l4spec ls quantization` lists others"
        problems = [Problem(f"{table.name} cannot be run: {why}", path=path) for why, path in reasons.items()]
        raise UserError([*problems[:-1], Problem(problems[-1].message, path=problems[-1].path, hint=hint)])
    _require_sizes(graph, table)
    return formats.pop()


def _why_not(law: Law, parameter: Parameter) -> str:
    """Reason why no module here stores a tensor under this law; empty if one does."""
    if isinstance(law, BlockLaw):
        return f"it stores {law.type} blocks of GGUF, which no module here computes with"
    if isinstance(law, PlainLaw):
        return "" if law.dtype in DTYPES else f"it stores {law.dtype} without scales"
    if law.bits not in _BITS[law.values]:
        return f"it stores {law.values} of {law.bits} bits, which no module here computes with"
    if law.zero_point_bits not in (0, 4) or (law.zero_point_bits and (law.values, law.bits) != ("int", 4)):
        return f"it stores zero points of {law.zero_point_bits} bits for {law.values} of {law.bits} bits"
    is_last = parameter.input_dim is None or parameter.input_dim % len(parameter.shape) == len(parameter.shape) - 1
    return "" if is_last else "it packs along another dim than the last"


def _require_sizes(graph: LayerGraph, table: Quantization) -> None:
    """Every tensor fits its law, or UserError names each that does not, and the groups that would fit."""
    try:
        stored_tensors(graph, scheme_of(table))
    except UserError as error:
        first, others = error.problems[0], len(error.problems) - 1
        more = f", and {others} more tensors" if others else ""
        other = fitted(graph, table)
        hint = f"{other.name} fits every tensor" if other is not table else first.hint
        raise UserError([Problem(f"{first.message}{more}", path=first.path, hint=hint)]) from None


def require_packable(model: Model, table: Quantization) -> None:
    """Raise UserError for a rank's part of a model, and for tensors of neither a linear layer nor stacked experts."""
    if type(model) is not Model:
        raise UserError(f"{table.name} packs whole models, not what a rank holds of one")
    problems = []
    for node, parameter, _ in _packed(model.graph, table):
        holder, _, name = f"{node.id}.{parameter.name}".rpartition(".")
        module = model.get_submodule(holder)
        if not (isinstance(module, nn.Linear) and name == "weight") and not isinstance(module, Experts):
            problem = f"{table.name} packs it, which is done for linear layers and experts alone"
            problems.append(Problem(problem, path=f"{node.id}.{parameter.name}"))
    if problems:
        raise UserError(problems)


def _packed(graph: LayerGraph, table: Quantization) -> Iterator[tuple[LayerNode, Parameter, ScaledLaw]]:
    for node, parameter in graph.parameters():
        law = table.law_for(target_of(graph, node, parameter))
        if isinstance(law, ScaledLaw) and parameter.tied_to is None:
            yield node, parameter, law


def quantize_layer(
    graph: LayerGraph, node: LayerNode, layer: nn.Module, table: Quantization, dtype: torch.dtype
) -> None:
    """Pack the tensors of one layer that the scheme packs, and cast the others; each is freed once it is packed."""
    assert isinstance(layer, LayerModule)
    for parameter in node.declaration.parameters:
        law = table.law_for(target_of(graph, node, parameter))
        if isinstance(law, ScaledLaw) and parameter.tied_to is None:
            _pack(layer, parameter.name, law, dtype)
    layer.to(dtype=dtype)


def _pack(layer: LayerModule, name: str, law: ScaledLaw, dtype: torch.dtype) -> None:
    """Replace the module that holds the tensor of this name, or its stack of an expert module."""
    holder, _, own = name.rpartition(".")
    parent, _, child = holder.rpartition(".")
    owner, module = layer.get_submodule(parent), layer.get_submodule(holder)
    if isinstance(module, nn.Linear):
        setattr(owner, child, QuantizedLinear(law, module, dtype))
        return
    if isinstance(module, Experts):
        module = QuantizedExperts(module)
        setattr(owner, child, module)
    assert isinstance(module, QuantizedExperts)
    stack = getattr(module, own).detach()
    weight = PackedWeight(law, tuple(stack.shape), dtype, stack.device)
    weight.fill(stack)
    module.set(own, weight)
