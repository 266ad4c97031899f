"""Sharded checkpoints: every rank writes its part, and ranks of any other layout read the parts they need."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from l4spec.errors import Place, Problem, UserError
from l4spec.graph.with_modules import with_modules
from l4spec.runtime.checkpoints.digests import Unchanged
from l4spec.runtime.checkpoints.headers import read_json
from l4spec.runtime.checkpoints.load import checked_folder
from l4spec.runtime.checkpoints.save import SPEC, spec_as_built, spec_text
from l4spec.runtime.parallel.checkpoints.hub import load_hub
from l4spec.runtime.parallel.checkpoints.local_shards import (
    MODEL,
    OPTIMIZER,
    LocalShard,
    shards_of_model,
    shards_of_optimizer,
    trained,
    whole_shapes,
)
from l4spec.runtime.parallel.checkpoints.planners import CHUNK_BYTES, Ours, RegionLoadPlanner, RegionSavePlanner
from l4spec.runtime.parallel.checkpoints.rank_coordination import (
    failures_named,
    is_first,
    new_folder,
    on_first,
    require_undamaged_by_ranks,
)
from l4spec.runtime.parallel.checkpoints.safe_reader import METADATA, TrustedReader

if TYPE_CHECKING:
    from l4spec.runtime.model import Model

RUN = "run.json"
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class RunState:
    """State of the run that wrote a checkpoint: completed steps, and settings that must be equal to continue."""

    step: int = 0
    settings: Mapping[str, Any] | None = None


def save_sharded(
    model: "Model",
    directory: Path | str,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    state: RunState | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Save a model, and an optimizer's state, to a new folder on storage shared by all ranks; all must call it.

    A tensor that several ranks have is written once. The folder gets its name when all ranks have finished, so that an
    incomplete one is never visible. Raises UserError on every rank if one of them cannot write.
    """
    model_part = shards_of_model(model)
    ours = _prefixed(MODEL, model_part)
    if optimizer is not None:
        ours |= _prefixed(OPTIMIZER, shards_of_optimizer(optimizer, model, model_part))
    with new_folder(directory) as folder:
        save(Ours(ours).state(), storage_writer=FileSystemWriter(folder), planner=RegionSavePlanner(chunk_bytes))
        if is_first():
            (folder / SPEC).write_text(spec_text(spec_as_built(model.graph, model.dtype)), encoding="utf-8")
            (folder / RUN).write_text(json.dumps(asdict(state or RunState())) + "\n", encoding="utf-8")


def load_sharded(
    model: "Model", directory: Path | str, optimizer: torch.optim.Optimizer | None = None, *, verify: bool = True
) -> RunState | None:
    """Load a model, whole or one rank's part, from a folder of shards or of whole tensors; all ranks must call it.

    Every rank reads the parts that overlap its own, whatever layout wrote them; values are cast to the model's format.
    An optimizer is loaded from a sharded folder only. Trained modules of multi-token prediction are skipped if the
    model has none (`with_modules`). Returns the state of the run that wrote it, None for a folder of whole tensors.
    Everything is checked before anything is read, with `verify` the digest of every file too: on UserError, which names
    every missing, extra, misshapen and truncated tensor and every damaged file, the model is unchanged. Only a file
    that changes while it is read is reported afterwards.
    """
    folder = checked_folder(directory)
    if any(shard.tensor.is_meta for shard in shards_of_model(model).values()):
        raise UserError("the model is on the meta device and cannot hold weights", hint="build it on cpu or cuda")
    if not (folder / METADATA).is_file():
        if optimizer is not None:
            raise UserError(f"{folder} holds no optimizer state", hint="only a sharded checkpoint does")
        load_hub(model, folder, verify=verify)
        return None
    before = Unchanged.of(folder)
    reader = TrustedReader(folder)
    metadata = reader.read_metadata()
    require_complete(model, metadata, folder, optimizer)
    state = read_state(folder)
    if verify:
        require_undamaged_by_ranks(folder, required=True)
    model_part = shards_of_model(model)
    ours = _prefixed(MODEL, model_part)
    if optimizer is not None:
        _make_room(optimizer, model, metadata)
        ours |= _prefixed(OPTIMIZER, shards_of_optimizer(optimizer, model, model_part))
    with failures_named(f"cannot read {folder}"):
        load(Ours(ours).state(), storage_reader=reader, planner=RegionLoadPlanner())
    before.require()
    return state


def read_state(folder: Path) -> RunState:
    """State of the run that wrote a sharded folder."""
    data = on_first(lambda: read_json(folder / RUN))
    step, settings = (data.get("step"), data.get("settings")) if isinstance(data, dict) else (None, None)
    if type(step) is not int or step < 0 or not isinstance(settings, dict | None):
        raise UserError([Problem("expected a step of at least 0 and settings", place=Place(RUN))])
    return RunState(step, settings)


def _prefixed(prefix: str, shards: Mapping[str, LocalShard]) -> dict[str, LocalShard]:
    return {prefix + name: replace(one, name=prefix + name) for name, one in shards.items()}


def require_complete(model: "Model", metadata: Metadata, folder: Path, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise UserError naming every difference between a sharded folder and the tensors of the whole model."""
    stored = metadata.state_dict_metadata
    shapes = {MODEL + name: shape for name, shape in whole_shapes(model).items()}
    problems = list(_differences(shapes, stored))
    known = shapes.keys() | {f"{MODEL}{node.id}.{p.name}" for node, p in with_modules(model.graph).parameters()}
    problems += [
        Problem("is stored, but the model has no such tensor", name)
        for name in sorted(stored)
        if name.startswith(MODEL) and name not in known
    ]
    if optimizer is not None:
        problems += _optimizer_differences(optimizer, model, stored)
    problems += _truncated(metadata, folder)
    if problems:
        plural = "s" if len(problems) > 1 else ""
        head = f"{folder} does not fit the model: {len(problems)} problem{plural}, {len(shapes)} tensors expected"
        raise UserError([Problem(head), *problems])


def _differences(shapes: Mapping[str, tuple[int, ...]], entries: Mapping[str, Any]) -> Iterator[Problem]:
    for name, shape in shapes.items():
        stored = entries.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            yield Problem("is missing", name)
        elif tuple(stored.size) != shape:
            yield Problem(f"expected shape {list(shape)}, found {list(stored.size)}", name)
        elif stored.properties.dtype not in _FLOATS:
            yield Problem(f"expected a floating-point format, found {stored.properties.dtype}", name)


def _optimizer_differences(
    optimizer: torch.optim.Optimizer, model: "Model", entries: Mapping[str, Any]
) -> Iterator[Problem]:
    """State shaped like its parameter, or a number; none at all is a run of no steps."""
    known, stored = whole_shapes(model), _state_keys(entries)
    for name, _ in trained(optimizer, model) if stored else ():
        keys = stored.get(f"{OPTIMIZER}{name}", ())
        if not keys:
            yield Problem("is missing", f"{OPTIMIZER}{name}")
        fulls = [f"{OPTIMIZER}{name}.{key}" for key in keys]
        yield from _differences({full: known[name] for full in fulls if getattr(entries[full], "size", None)}, entries)


def _state_keys(names: Iterable[str]) -> dict[str, list[str]]:
    """By `optimizer.NAME`, the keys of its stored state: exp_avg, exp_avg_sq, step."""
    keys: dict[str, list[str]] = {}
    for full in names:
        if full.startswith(OPTIMIZER):
            name, _, key = full.rpartition(".")
            keys.setdefault(name, []).append(key)
    return keys


def _truncated(metadata: Metadata, folder: Path) -> Iterator[Problem]:
    ends: dict[str, int] = {}
    for stored in metadata.storage_data.values():
        ends[stored.relative_path] = max(ends.get(stored.relative_path, 0), stored.offset + stored.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            yield Problem("is no file", place=Place(name))
        elif size < end:
            yield Problem(f"is truncated: {end:,} bytes expected, found {size:,}", place=Place(name))
        elif size > end:
            yield Problem(f"is too long: {end:,} bytes expected, found {size:,}", place=Place(name))


def _make_room(optimizer: torch.optim.Optimizer, model: "Model", metadata: Metadata) -> None:
    """Give the optimizer the state that is stored, for it to be read into."""
    entries = metadata.state_dict_metadata
    keys = _state_keys(entries)
    for name, parameter in trained(optimizer, model):
        state: dict[str, torch.Tensor] = {}
        for key in keys.get(f"{OPTIMIZER}{name}", ()):
            stored = entries[f"{OPTIMIZER}{name}.{key}"]
            assert isinstance(stored, TensorStorageMetadata), "checked before"
            state[key] = torch.zeros_like(parameter) if stored.size else torch.zeros((), dtype=stored.properties.dtype)
        optimizer.state[parameter] = state
