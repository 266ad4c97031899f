"""Finds the layout of a checkpoint, and reports every difference from the model's tensors. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence

from l4spec.errors import Place, Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface.families import FAMILIES
from l4spec.runtime.checkpoints.headers import TensorHeader
from l4spec.runtime.checkpoints.hub_names import hub_layout, native_layout
from l4spec.runtime.checkpoints.layout import CheckpointLayout, StoredTensor

LOADABLE = ("BF16", "F16", "F32", "F64")
"""Number formats that are copied, cast to the model's own; packed and 8-bit weights need more than a cast."""
INDICES = ("I32", "I64")
"""Number formats of tensors that hold indices."""
Key = tuple[int, str]
"""Rank of the file and name; the rank is 0 where files are no ranks."""


def hub_layout_of(graph: LayerGraph, names: frozenset[str], preferred: str | None) -> CheckpointLayout:
    """The layout that knows most of these names; `preferred` (a model_type) among equals, then the tables' order."""
    families = sorted(FAMILIES, key=lambda family: family != preferred)
    layouts = [layout for family in families if (layout := hub_layout(graph, family))]
    return max((*layouts, native_layout(graph)), key=lambda layout: layout.num_matches(names))


def require_match(layout: CheckpointLayout, headers: Mapping[Key, TensorHeader]) -> tuple[StoredTensor, ...]:
    """The stored tensors to read. Raises UserError naming every missing, extra, misshapen and unreadable one."""
    shapes = {name: header.shape for (_, name), header in headers.items()}
    tensors = layout.matching(frozenset(shapes), shapes)
    problems = list(_differences(tensors, headers))
    known = {(stored.rank, stored.name) for stored in tensors}
    for (rank, name), header in headers.items():
        if (rank, name) not in known and not layout.ignored(name):
            problems.append(Problem("is stored, but the model has no such tensor", name, Place(header.file.name)))
    if problems:
        raise UserError([_summary(layout, problems, tensors), *problems])
    return tensors


def _differences(tensors: Iterable[StoredTensor], headers: Mapping[Key, TensorHeader]) -> Iterable[Problem]:
    for stored in tensors:
        header = headers.get((stored.rank, stored.name))
        if header is None:
            where = f" in rank {stored.rank}" if stored.rank else ""
            yield Problem(f"is missing{where}", stored.name)
            continue
        place = Place(header.file.name)
        if header.shape != stored.shape:
            yield Problem(f"expected shape {list(stored.shape)}, found {list(header.shape)}", stored.name, place)
        loadable = INDICES if stored.holds_indices else LOADABLE
        if header.dtype not in loadable:
            formats = ", ".join(loadable)
            yield Problem(f"expected a number format out of {formats}, found {header.dtype}", stored.name, place)


def _summary(layout: CheckpointLayout, problems: Sequence[Problem], tensors: Sequence[StoredTensor]) -> Problem:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return Problem(
        f"the checkpoint does not fit the model: {count}, {len(tensors)} tensors expected in layout {layout.name}"
    )
