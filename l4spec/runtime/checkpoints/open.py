"""Opening a checkpoint directory as a model: its spec is read, the model built, and the weights loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from l4spec.errors import UserError
from l4spec.graph.build import build_graph
from l4spec.huggingface import import_file
from l4spec.progress import Progress
from l4spec.quantization.scheme import scheme_named
from l4spec.runtime.build import build, build_quantized
from l4spec.runtime.checkpoints.digests import CONFIG
from l4spec.runtime.checkpoints.load import load_checkpoint
from l4spec.runtime.checkpoints.packed_load import quantization_file
from l4spec.runtime.checkpoints.save import SPEC
from l4spec.runtime.memory_check import require_memory
from l4spec.runtime.quantize.apply import number_format
from l4spec.spec.document import load_document
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import resolve

if TYPE_CHECKING:
    from l4spec.runtime.model import Model


def spec_of(directory: Path | str) -> ModelSpec:
    """Spec of the model in a checkpoint directory, from its spec.yaml or else its config.json. Raises UserError."""
    directory = Path(directory)
    if (directory / SPEC).is_file():
        return parse_spec(load_document(directory / SPEC))
    if (directory / CONFIG).is_file():
        return import_file(directory / CONFIG, directory.resolve().name).spec
    raise UserError(f"{str(directory)[:200]} holds neither {SPEC} nor {CONFIG}", hint="name a checkpoint folder")


def open_model(
    directory: Path | str,
    device: torch.device | str = "cpu",
    dtype: str | None = None,
    *,
    verify: bool = True,
    progress: Progress | None = None,
) -> "Model":
    """Open a checkpoint directory as a model with its weights, in `dtype` (by default that of the published weights).

    A quantized one, as `save_checkpoint` writes it, is opened packed. Raises UserError as `load_checkpoint` does, for
    an unsupported configuration, and if memory is insufficient. `verify` as there.
    """
    spec, packed = spec_of(directory), quantization_file(Path(directory))
    graph, table = build_graph(resolve(spec)), scheme_named(str(packed.absolute())) if packed else None
    if table is None:
        require_memory(spec, graph, str(device), dtype or spec.text.dtype)
        model = build(graph, device, dtype, seed=None)
    elif dtype is not None:
        raise UserError(f"{table.name} says the number formats of {directory}", hint="leave out dtype")
    else:
        require_memory(spec, graph, str(device), number_format(graph, table), table=table)
        model = build_quantized(graph, table, device, seed=None)
    load_checkpoint(model, directory, verify=verify, progress=progress)
    return model
