"""Layout of Hugging Face checkpoints: each family's tensor names applied to the tensors that a graph declares."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface.families import FAMILIES
from l4spec.huggingface.naming import Naming
from l4spec.layers.declaration import Parameter
from l4spec.runtime.checkpoints.layout import (
    CheckpointLayout,
    StoredGroup,
    StoredTensor,
    TensorPiece,
    stored_parameters,
    whole,
)

NATIVE = "l4spec"


def hub_layout(graph: LayerGraph, family: str) -> CheckpointLayout | None:
    """The layout of `family` for a model of this graph; None if it has no name for one of the tensors."""
    naming = FAMILIES[family].naming
    named = [
        (full, graph.by_id[full.removesuffix(f".{parameter.name}")].kind, parameter)
        for full, parameter in stored_parameters(graph)
    ]
    groups = hub_groups(named, naming, partial(_convolution, graph))
    ignored = partial(_is_ignored, _ignored_patterns(graph, naming))
    return None if groups is None else CheckpointLayout(family, groups, ignored)


def hub_groups(
    named: Iterable[tuple[str, str, Parameter]],
    naming: Naming,
    as_convolution: Callable[[str, str, Parameter], StoredTensor] = whole,
) -> tuple[StoredGroup, ...] | None:
    """Stored form of the tensors (our name, kind of layer, declaration); None if one of them has no name."""
    named, groups = tuple(named), []
    experts: dict[str, dict[str, Parameter]] = {}
    joined: dict[str, dict[str, Parameter]] = {}
    units = {full: parameter.dims[0].units for full, _, parameter in named}
    for full, layer_kind, parameter in named:
        if _is_stack(parameter) or _is_stacked_bias(parameter, full):
            prefix, kind = full.rsplit(".", 1)
            experts.setdefault(prefix, {})[kind] = parameter
            continue
        tagged = naming.tagged(full, layer_kind)
        if (stored := naming.joining(tagged)) is not None:
            joined.setdefault(stored, {})[full] = parameter
            continue
        names = naming.of(tagged)
        if not names:
            return None
        stored_as = as_convolution if full in naming.convolutions else whole
        groups.append(StoredGroup(tuple((stored_as(name, full, parameter),) for name in names)))
    groups += [
        StoredGroup(((_widened(_joined_rows(stored, parts, units.get(naming.heads_of(stored), 1)), naming),),))
        for stored, parts in joined.items()
    ]
    for prefix, stacks in experts.items():
        group = _expert_group(prefix, stacks, naming)
        if group is None:
            return None
        groups.append(group)
    return tuple(groups)


def native_layout(graph: LayerGraph) -> CheckpointLayout:
    """Our own names and shapes, for models that no family can express."""
    groups = (StoredGroup(((whole(full, full, parameter),),)) for full, parameter in stored_parameters(graph))
    of_modules = (re.compile(r"^mtp\.layers\."),) if graph.model.text.mtp else ()
    return CheckpointLayout(NATIVE, tuple(groups), partial(_is_ignored, of_modules))


def _joined_rows(stored: str, parts: Mapping[str, Parameter], num_heads: int) -> StoredTensor:
    """One stored matrix, or vector, whose rows are those of several tensors of ours: one after the other, or by heads.

    The convolution over channels has a dim of 1 between them and the taps, as torch's `Conv1d` wants it.
    """
    pieces, start = [], 0
    for head in range(num_heads):
        for full, parameter in parts.items():
            size = parameter.shape[0] // num_heads
            region = ((0, head * size, (head + 1) * size),) if num_heads > 1 else ()
            pieces.append(TensorPiece(full, region, ((0, start, start + size),)))
            start += size
    rest = next(iter(parts.values())).shape[1:]
    if stored.endswith("conv1d.weight"):
        return StoredTensor(stored, (start, 1, *rest), tuple(pieces), view=(start, *rest))
    return StoredTensor(stored, (start, *rest), tuple(pieces))


def _widened(tensor: StoredTensor, naming: Naming) -> StoredTensor:
    """With dimensions of 1 around the first, where its family stores them."""
    before, after = naming.unit_dims_of(tensor.name)
    if not before and not after:
        return tensor
    rows, *rest = tensor.shape
    return replace(tensor, shape=(*[1] * before, rows, *[1] * after, *rest), view=tensor.shape)


def _convolution(graph: LayerGraph, name: str, tensor: str, parameter: Parameter) -> StoredTensor:
    """A projection of patches as the convolution that it is stored as."""
    assert graph.model.vision is not None, "patches are those of a tower"
    shape = (parameter.shape[0], *graph.model.vision.patch_embedding.kernel)
    return StoredTensor(name, shape, (TensorPiece(tensor),), view=parameter.shape)


def _is_stacked_bias(parameter: Parameter, full: str) -> bool:
    return parameter.role == "bias" and ".experts." in full and len(parameter.dims) == 2


def _is_stack(parameter: Parameter) -> bool:
    return parameter.role == "expert" and len(parameter.dims) == 3


def _expert_group(prefix: str, stacks: Mapping[str, Parameter], naming: Naming) -> StoredGroup | None:
    prefixes = naming.of(prefix)
    if prefixes and naming.in_turns and set(stacks) == _BIASED:
        return StoredGroup((_experts_in_turns(prefix, prefixes[0], stacks),))
    if not prefixes or naming.in_turns or set(stacks) not in ({*_GATED}, {*_PLAIN}):
        return None
    each = [_each_expert(prefix, stored, stacks, naming.each) for stored in prefixes]
    if naming.stacked:
        each = [_stacked_experts(prefix, prefixes[0], stacks)]
    ways = (naming.fused_in_out, not naming.fused_in_out) if naming.fused_both else (naming.fused_in_out,)
    fused = [_fused_experts(prefix, stored, stacks, in_out) for stored in prefixes for in_out in ways]
    return StoredGroup((*fused, *each) if naming.fused_first else (*each, *fused))


def _each_expert(
    prefix: str, stored: str, stacks: Mapping[str, Parameter], names: tuple[str, str, str]
) -> tuple[StoredTensor, ...]:
    """`{stored}.{expert}.{name}.weight` [out, in] for every expert and projection."""
    pieces = []
    for kind, name in zip(_GATED, names, strict=True):
        if kind not in stacks:
            continue
        num_experts, out, into = stacks[kind].shape
        for expert in range(num_experts):
            piece = TensorPiece(f"{prefix}.{kind}", ((0, expert, expert + 1),))
            tensor = f"{stored}.{expert}.{name}.weight"
            pieces.append(StoredTensor(tensor, (out, into), (piece,), view=(1, out, into)))
    return tuple(pieces)


def _stacked_experts(prefix: str, stored: str, stacks: Mapping[str, Parameter]) -> tuple[StoredTensor, ...]:
    """`{stored}.{name}.weight` [experts, out, in] for each projection."""
    return tuple(
        StoredTensor(f"{stored}.{kind}.weight", stacks[kind].shape, (TensorPiece(f"{prefix}.{kind}"),))
        for kind in _GATED
        if kind in stacks
    )


def _fused_experts(prefix: str, stored: str, stacks: Mapping[str, Parameter], in_out: bool) -> tuple[StoredTensor, ...]:
    """`{stored}.gate_up_proj`, the gate's half first, or `{stored}.up_proj`, and `{stored}.down_proj`: all experts'."""
    num_experts, ffn, hidden = stacks["up_proj"].shape
    dim = 2 if in_out else 1
    halves = (("gate_proj", 0), ("up_proj", ffn))
    gate_up = tuple(
        TensorPiece(f"{prefix}.{kind}", stored_region=((dim, start, start + ffn),), transposed=in_out)
        for kind, start in halves
    )
    down = (TensorPiece(f"{prefix}.down_proj", transposed=in_out),)
    shape = (num_experts, hidden, 2 * ffn) if in_out else (num_experts, 2 * ffn, hidden)
    down_shape = (num_experts, ffn, hidden) if in_out else (num_experts, hidden, ffn)
    if "gate_proj" not in stacks:
        up_shape = (num_experts, hidden, ffn) if in_out else (num_experts, ffn, hidden)
        first = StoredTensor(f"{stored}.up_proj", up_shape, (TensorPiece(f"{prefix}.up_proj", transposed=in_out),))
    else:
        first = StoredTensor(f"{stored}.gate_up_proj", shape, gate_up)
    return first, StoredTensor(f"{stored}.down_proj", down_shape, down)


_GATED = ("gate_proj", "up_proj", "down_proj")
_PLAIN = _GATED[1:]
_BIASED = {f"{name}_{kind}" for name in ("gate", "up", "down") for kind in ("proj", "bias")}


def _experts_in_turns(prefix: str, stored: str, stacks: Mapping[str, Parameter]) -> tuple[StoredTensor, ...]:
    """gpt-oss: `gate_up_proj` [expert, in, 2 out] with gate and up in turns, its biases, and `down_proj`."""
    num_experts, ffn, hidden = stacks["gate_proj"].shape

    def turns(kind: str, transposed: bool) -> tuple[TensorPiece, ...]:
        dim = 2 if transposed else 1
        return tuple(
            TensorPiece(f"{prefix}.{name}_{kind}", (), ((dim, start, 2 * ffn),), transposed=transposed, step=2)
            for start, name in enumerate(("gate", "up"))
        )

    down = TensorPiece(f"{prefix}.down_proj", transposed=True)
    return (
        StoredTensor(f"{stored}.gate_up_proj", (num_experts, hidden, 2 * ffn), turns("proj", transposed=True)),
        StoredTensor(f"{stored}.gate_up_proj_bias", (num_experts, 2 * ffn), turns("bias", transposed=False)),
        StoredTensor(f"{stored}.down_proj", (num_experts, ffn, hidden), (down,)),
        StoredTensor(f"{stored}.down_proj_bias", (num_experts, hidden), (TensorPiece(f"{prefix}.down_bias"),)),
    )


def _ignored_patterns(graph: LayerGraph, naming: Naming) -> tuple[re.Pattern[str], ...]:
    patterns = [*naming.optional, *(naming.of_towers if graph.model.vision is None else ())]
    if graph.model.text.head.tied:
        patterns.append(rf"^(language_model\.)?{re.escape('lm_head.weight')}$")
    declared = graph.model.text.mtp
    after = naming.next_token_layers
    if declared is not None and naming.modules is not None and naming.modules.after_layers:
        after = max(after, declared.num_modules)
    patterns += [rf"^model\.layers\.{graph.num_layers + extra}\." for extra in range(after)]
    return tuple(re.compile(pattern) for pattern in patterns)


def _is_ignored(patterns: tuple[re.Pattern[str], ...], name: str) -> bool:
    return any(pattern.search(name) for pattern in patterns)
