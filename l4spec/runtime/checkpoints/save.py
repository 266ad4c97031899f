"""Saving of checkpoints: names and shapes first, then each tensor is assembled as it is written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from l4spec.errors import SpecError, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface import export_config
from l4spec.progress import Progress
from l4spec.quantization.scheme import Quantization
from l4spec.runtime.checkpoints.digests import CONFIG
from l4spec.runtime.checkpoints.hub_names import hub_layout, native_layout
from l4spec.runtime.checkpoints.layout import CheckpointLayout, StoredTensor
from l4spec.runtime.checkpoints.modules import module_layout, tensors_of_modules
from l4spec.runtime.checkpoints.packed_load import QUANTIZATION
from l4spec.runtime.checkpoints.packed_save import (
    SHAPE_BYTES,
    packed_entries,
    quantization_config,
    require_exportable,
    stored_tensors,
)
from l4spec.runtime.checkpoints.regions import part, stored_part
from l4spec.runtime.checkpoints.write import TensorEntry, require_new_folder, write_folder
from l4spec.runtime.module_inventory import module_tensors
from l4spec.runtime.quantize.weight import packed_weights
from l4spec.spec.model import ModelSpec

if TYPE_CHECKING:
    from l4spec.runtime.model import Model
    from l4spec.runtime.mtp import MTPModule

SPEC = "spec.yaml"
DEFAULT_SHARD_BYTES = 5_000_000_000
_SPEC_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """Summary of a saved checkpoint: layout, number of tensors and weight files, and bytes of tensor data.

    `shape_bytes` of these are the shapes of packed matrices, which the format of quantized checkpoints adds to the
    model's own tensors. Headers are not counted.
    """

    directory: Path
    layout: str
    num_tensors: int
    num_files: int
    num_bytes: int
    shape_bytes: int = 0


def save_checkpoint(
    model: "Model",
    directory: Path | str,
    *,
    modules: "Sequence[MTPModule]" = (),
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> SavedCheckpoint:
    """Write the weights and the configuration of `model` to `directory`, which must be new or empty.

    A model that a Hugging Face family can express is saved under that family's names with a config.json, and loads in
    transformers; any other under our own names with a spec.yaml. A quantized model is saved in the format of
    compressed-tensors, which vLLM reads. `modules` of multi-token prediction (`build_mtp`, `open_mtp`) are written
    beside the model; without them the configuration declares none. Weights above `max_shard_bytes` are split over
    several files with an index. Everything is written to a temporary directory, which is renamed at the end. Raises
    UserError.
    """
    target = require_new_folder(directory)
    tensors = module_tensors(model)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise UserError("the model is on the meta device and has no weights to save", hint="build it on cpu or cuda")
    if model.quantization is not None:
        require_exportable(model.graph, model.quantization)
    if modules and model.quantization is not None:
        raise UserError("modules of multi-token prediction are saved beside plain weights only")
    dtype = tensors["text.embedding.weight"].dtype
    layout, config = _layout_and_config(model.graph, dtype, with_modules=bool(modules))
    packed = packed_weights(model)
    if packed and model.quantization is not None and isinstance(config, dict):
        config["quantization_config"] = quantization_config(model.graph, model.quantization, layout)
    text = dict([_text_of(config)])
    if packed and model.quantization is not None:
        text[QUANTIZATION] = _scheme_text(model.quantization)
    entries: list[TensorEntry] = []
    for stored in stored_tensors(layout, set(packed)):
        weight = packed.get(stored.pieces[0].tensor)
        entries.extend([_entry(stored, tensors)] if weight is None else packed_entries(stored, weight))
    if modules:
        own, copies = tensors_of_modules(model, modules, layout.name)
        entries += [_entry(stored, own | copies) for stored in module_layout(model.graph, layout.name).saved()]
    num_files = write_folder(target, entries, text, max_shard_bytes, progress)
    shapes = sum(SHAPE_BYTES for entry in entries if entry.name.endswith(".weight_shape"))
    num_bytes = sum(entry.num_bytes for entry in entries)
    return SavedCheckpoint(target, layout.name, len(entries), num_files, num_bytes, shapes)


def _entry(stored: StoredTensor, tensors: Mapping[str, Tensor]) -> TensorEntry:
    dtype = tensors[stored.pieces[0].tensor].dtype
    return TensorEntry(stored.name, stored.shape, dtype, partial(_assembled, stored, tensors, dtype))


def spec_as_built(graph: LayerGraph, dtype: torch.dtype) -> ModelSpec:
    """The spec, with the number format of the weights."""
    spec = graph.model.spec
    built = _SPEC_DTYPES.get(dtype, spec.text.dtype)
    return spec.model_copy(update={"text": spec.text.model_copy(update={"dtype": built}), "stored_as": None})


def layout_and_text(graph: LayerGraph, dtype: torch.dtype) -> tuple[CheckpointLayout, tuple[str, str]]:
    """The checkpoint layout, and the name and text of the file that describes the model."""
    layout, config = _layout_and_config(graph, dtype)
    return layout, _text_of(config)


def _text_of(config: dict[str, Any] | str) -> tuple[str, str]:
    return (SPEC, config) if isinstance(config, str) else (CONFIG, json.dumps(config, indent=2) + "\n")


def _layout_and_config(
    graph: LayerGraph, dtype: torch.dtype, *, with_modules: bool = False
) -> tuple[CheckpointLayout, dict[str, Any] | str]:
    """The layout and the description of the model: a Hugging Face config, or the text of a spec.

    Modules of multi-token prediction are declared only where their weights are there.
    """
    spec = spec_as_built(graph, dtype)
    spec = spec if with_modules else spec.without_modules()
    try:
        config = export_config(spec)
    except SpecError:
        return native_layout(graph), spec_text(spec)
    layout = hub_layout(graph, config["model_type"])
    assert layout is not None, f"{config['model_type']} has a config for this model, but no names for its tensors"
    return layout, config


def _scheme_text(table: Quantization) -> str:
    from l4spec.huggingface.yaml_out import to_yaml

    data = table.model_dump(mode="json", exclude_defaults=True)
    return to_yaml(data, head=("How the weights beside this file are packed, written by l4spec.",))


def spec_text(spec: ModelSpec) -> str:
    """Text of the spec.yaml beside the weights."""
    from l4spec.huggingface.yaml_out import to_yaml

    left_out = {"extends", "about", "claims", "estimated", "huggingface"}
    data = spec.model_dump(mode="json", exclude=left_out)  # nulls included: a field without a default may be one
    return to_yaml(data, head=("The model whose weights lie beside this file, written by l4spec.",))


def _assembled(stored: StoredTensor, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The stored tensor on the CPU: a tensor of ours, or one assembled from several."""
    first = stored.pieces[0]
    if stored.view is None and len(stored.pieces) == 1 and not first.region and not first.transposed:
        return tensors[first.tensor].detach().cpu().contiguous()
    tensor = torch.empty(stored.shape, dtype=dtype)
    for piece in stored.pieces:
        source = part(tensors[piece.tensor].detach(), piece.region)
        stored_part(tensor.view(stored.view or stored.shape), piece).copy_(source)
    return tensor
