"""Loading of quantized models that `save_checkpoint` wrote: payloads and scales are copied without rounding again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l4spec.errors import Place, Problem, UserError
from l4spec.runtime.checkpoints.headers import TensorHeader
from l4spec.runtime.checkpoints.layout import CheckpointLayout, StoredTensor
from l4spec.runtime.checkpoints.packed_save import matrix_index, packed_entries, stored_tensors
from l4spec.runtime.checkpoints.write import FORMATS, TensorEntry
from l4spec.runtime.module_inventory import module_tensors
from l4spec.runtime.quantize.bit_packing import unpack_nibbles
from l4spec.runtime.quantize.codes import Coded
from l4spec.runtime.quantize.weight import PackedWeight, packed_weights

if TYPE_CHECKING:
    from l4spec.runtime.model import Model

Read = Callable[[str], Tensor]
QUANTIZATION = "quantization.yaml"
"""The file beside the weights with the complete scheme."""


@dataclass(frozen=True, slots=True)
class _LoadTarget:
    """A stored tensor of the layout with its entries in the files."""

    stored: StoredTensor
    weight: PackedWeight | None
    entries: Sequence[TensorEntry]


def matched(model: "Model", layout: CheckpointLayout, headers: dict[str, TensorHeader]) -> "tuple[_LoadTarget, ...]":
    """Entries to read for every tensor. Raises UserError for missing, extra, misshapen ones and for other formats."""
    tensors, packed = module_tensors(model), packed_weights(model)
    targets = []
    for stored in stored_tensors(layout, set(packed)):
        weight, tensor = packed.get(stored.pieces[0].tensor), tensors.get(stored.pieces[0].tensor)
        if weight is not None:
            targets.append(_LoadTarget(stored, weight, packed_entries(stored, weight)))
        else:
            assert tensor is not None
            targets.append(
                _LoadTarget(stored, None, [TensorEntry(stored.name, stored.shape, tensor.dtype, tensor.cpu)])
            )
    problems = []
    entries = {entry.name: entry for each in targets for entry in each.entries}
    for entry in entries.values():
        header = headers.get(entry.name)
        if header is None:
            problems.append(Problem("is missing", entry.name))
        elif (header.shape, header.dtype) != (entry.shape, FORMATS[entry.dtype]):
            expected = f"expected {FORMATS[entry.dtype]} of shape {list(entry.shape)}"
            actual = f"found {header.dtype} of shape {list(header.shape)}"
            problems.append(Problem(f"{expected}, {actual}", entry.name, Place(header.file.name)))
    for name in headers.keys() - entries.keys():
        if not layout.ignored(name):
            problems.append(Problem("is stored, but the model has no such tensor", name))
    if problems:
        raise UserError(sorted(problems, key=lambda problem: problem.path))
    return tuple(targets)


@torch.no_grad()
def fill(
    model: "Model", targets: "Sequence[_LoadTarget]", read: Read, copy: Callable[[StoredTensor, Tensor], None]
) -> None:
    """Copy the tensors that `read` returns by name into the model; `copy` copies a plain stored tensor."""
    packed = packed_weights(model)
    for weight in packed.values():
        weight.reset()
    for each in targets:
        if each.weight is None:
            copy(each.stored, read(each.stored.name))
            continue
        payload, scale, *_ = (read(entry.name) for entry in each.entries)
        each.weight.put(Coded(_codes(each.weight, payload), scale), matrix_index(each.stored))
    for weight in packed.values():
        weight.use_kernel()


def _codes(weight: PackedWeight, payload: Tensor) -> Tensor:
    columns = weight.shape[-1]
    if weight.law.bits == 4:
        return unpack_nibbles(payload, columns)
    return payload.view(torch.uint8)[..., :columns]


def quantization_file(directory: Path) -> Path | None:
    """The file of a checkpoint folder with its packing scheme, if there is one."""
    path = directory / QUANTIZATION
    return path if path.is_file() else None
