"""Checkpoints of quantized models in the format of compressed-tensors, which vLLM reads.

Whole numbers go into `pack-quantized` (`X.weight_packed` in int32 words, `X.weight_scale`, `X.weight_shape`), 8-bit
floats into `float-quantized` (`X.weight`, `X.weight_scale`), whose activations are rounded while it runs, one scale per
token. Every expert is a linear layer of its own, as that format knows nothing of stacks. The payload is ours, byte for
byte. Source: vllm-project/compressed-tensors, compressors/pack_quantized and compressors/naive_quantized.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l4spec.errors import Problem, SpecError, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface import export_config
from l4spec.quantization.scheme import Quantization
from l4spec.quantization.tensors import target_of
from l4spec.runtime.checkpoints.layout import CheckpointLayout, StoredTensor
from l4spec.runtime.checkpoints.write import TensorEntry
from l4spec.runtime.quantize.bit_packing import pack_nibbles
from l4spec.runtime.quantize.weight import PackedWeight
from l4spec.spec.storage import PlainLaw, ScaledLaw
from l4spec.units import ceil_div

Json = dict[str, Any]
PACKED, FLOAT = "pack-quantized", "float-quantized"
WORD_BITS = 32
SHAPE_BYTES = 16
"""Bytes of each `weight_shape`, which the format adds to the scheme's tensors: two int64."""


def require_exportable(graph: LayerGraph, table: Quantization) -> None:
    """Raise UserError for a scheme, or a model, that has no words in the format."""
    problems: dict[str, str] = {}
    laws = dict(_laws(graph, table))
    for name, law in laws.items():
        reason = _why_not(law, graph, name)
        if reason:
            problems.setdefault(reason, name)
    if not problems and len(set(laws.values())) > 1:
        problems["it packs by several laws"] = ""
    lead = f"{table.name} cannot be written in compressed-tensors' formats"
    if problems:
        raise UserError([Problem(f"{lead}: {reason}", path=name) for reason, name in problems.items()])
    if laws:
        try:
            export_config(graph.model.spec.without_modules())
        except SpecError as error:
            raise UserError([Problem("a quantized checkpoint needs a Hugging Face config"), *error.problems]) from None


def _laws(graph: LayerGraph, table: Quantization) -> Iterator[tuple[str, ScaledLaw]]:
    for node, parameter in graph.parameters():
        law = table.law_for(target_of(graph, node, parameter))
        if not isinstance(law, PlainLaw) and parameter.tied_to is None:
            assert isinstance(law, ScaledLaw), "a model is quantized by laws that can be run"
            yield f"{node.id}.{parameter.name}", law


def _why_not(law: ScaledLaw, graph: LayerGraph, name: str) -> str:
    """Reason why the format cannot express a law of a tensor; empty if it can."""
    if law.matrix_scale_dtype or law.zero_point_bits or law.scale_dtype not in ("fp32", "bf16", "fp16"):
        return "it needs one scale of 16 or 32 bits a group, and no zero points"
    if law.values == "e2m1":
        return "it stores 4-bit floats"
    if law.values == "e4m3":
        return "" if not isinstance(law.group, int) else "it stores 8-bit floats in groups of a row"
    if isinstance(law.group, tuple) or law.group == "tensor":
        return "it stores whole numbers with other scales than one a row or one a group of it"
    shapes = {f"{node.id}.{parameter.name}": parameter.shape for node, parameter in graph.parameters()}
    in_words = shapes[name][-1] * law.bits % WORD_BITS == 0
    return "" if in_words or law.word_bits == WORD_BITS else f"rows are no whole words of {WORD_BITS} bits"


def quantization_config(graph: LayerGraph, table: Quantization, layout: CheckpointLayout) -> Json:
    """`quantization_config` of config.json; every linear layer that is not packed is named under `ignore`."""
    laws = dict(_laws(graph, table))
    law = next(iter(laws.values()))
    is_float = law.values == "e4m3"
    weights: Json = {"num_bits": law.bits, "type": "float" if is_float else "int", "symmetric": True, "dynamic": False}
    weights |= {"row": {"strategy": "channel"}, "tensor": {"strategy": "tensor"}}.get(str(law.group), {})
    if isinstance(law.group, int):
        weights |= {"strategy": "group", "group_size": law.group}
    elif isinstance(law.group, tuple):
        weights |= {"strategy": "block", "block_structure": list(law.group)}
    activations = _activations(law) if is_float else None
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": FLOAT if is_float else PACKED,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["re:.*lm_head", *_unpacked_linears(graph, set(laws), layout)],
        "kv_cache_scheme": None,
    }


def _activations(law: ScaledLaw) -> Json:
    """Activation quantization that engines apply before an 8-bit product: by token, or by groups of a block's width."""
    common: Json = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True}
    if isinstance(law.group, tuple):
        return common | {"strategy": "group", "group_size": law.group[1]}
    return common | {"strategy": "token"}


def _unpacked_linears(graph: LayerGraph, packed: set[str], layout: CheckpointLayout) -> list[str]:
    """Stored names of the linear layers that stay plain, routers among them."""
    roles = {f"{node.id}.{parameter.name}": parameter.role for node, parameter in graph.parameters()}
    return [
        stored.name.removesuffix(".weight")
        for stored in stored_tensors(layout, packed)
        if stored.name.endswith(".weight")
        and len(stored.shape) == 2
        and stored.pieces[0].tensor not in packed
        and roles[stored.pieces[0].tensor] in ("linear", "router")
    ]


def stored_tensors(layout: CheckpointLayout, packed: set[str]) -> list[StoredTensor]:
    """Tensors to write: groups with packed tensors matrix by matrix, others in their usual form."""
    tensors: list[StoredTensor] = []
    for group in layout.groups:
        ways = list(group.alternatives)
        if any(piece.tensor in packed for stored in ways[0] for piece in stored.pieces):
            ways = [way for way in ways if all(_is_one_matrix(stored) for stored in way)]
        tensors.extend(ways[0])
    return tensors


def _is_one_matrix(stored: StoredTensor) -> bool:
    return len(stored.pieces) == 1 and not stored.pieces[0].transposed and len(stored.shape) == 2


def matrix_index(stored: StoredTensor) -> tuple[int, ...]:
    """Index, in its stack, of the matrix that is stored here; empty without a stack."""
    return tuple(start for dim, start, _ in stored.pieces[0].region if dim == 0)


def packed_entries(stored: StoredTensor, weight: PackedWeight) -> Sequence[TensorEntry]:
    """The tensors of one packed matrix in a checkpoint."""
    index = matrix_index(stored)
    base = stored.name.removesuffix(".weight")
    rows, columns = weight.shape[-2:]
    scale = weight.weight_scale[index]
    scale_shape = (1,) if weight.law.group == "tensor" else tuple(scale.shape)
    scales = TensorEntry(f"{base}.weight_scale", scale_shape, scale.dtype, lambda: scale.cpu().view(scale_shape))
    if weight.law.values == "e4m3":
        payload = weight.weight_packed[index]
        return TensorEntry(stored.name, (rows, columns), payload.dtype, payload.cpu), scales
    words = ceil_div(columns * weight.law.bits, WORD_BITS)
    return (
        TensorEntry(f"{base}.weight_packed", (rows, words), torch.int32, partial(_words, weight, index)),
        scales,
        TensorEntry(f"{base}.weight_shape", (2,), torch.int64, lambda: torch.tensor([rows, columns])),
    )


def _words(weight: PackedWeight, index: tuple[int, ...]) -> Tensor:
    """Codes from 0 upwards in int32 words, the first code lowest; 8-bit codes are bytes."""
    codes = weight.coded(index).codes.cpu()
    if weight.law.bits == 4:
        return pack_nibbles(codes, WORD_BITS)
    return nn.functional.pad(codes, (0, -codes.shape[-1] % 4), value=128).contiguous().view(torch.int32)
