"""Layout of a checkpoint: which part of which stored tensor is which part of a model's tensor. Imports no torch.

Loading and saving read the same description, so that neither can know a name or an orientation that the other lacks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Parameter

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of stored tensors by name."""
Region = tuple[tuple[int, int, int], ...]
"""A box in a tensor: (dim, start, stop) for each dim that is cut; empty for the whole tensor."""


@dataclass(frozen=True, slots=True)
class TensorPiece:
    """A part of the stored tensor that is a part of one of ours: `tensor[region] == stored[stored_region]`.

    `transposed`: the last two dims of the stored part are swapped.
    """

    tensor: str
    region: Region = ()
    stored_region: Region = ()
    transposed: bool = False
    step: int = 1
    """Of the last dim of the stored part, only every so many-th element is ours (gpt-oss: gate and up in turns)."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint. Its pieces see it reshaped to `view`; `rank` counts the files of a sharded one.

    A tensor without pieces must be there but is not read: a copy that every rank of a sharded checkpoint keeps.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[TensorPiece, ...]
    view: tuple[int, ...] | None = None
    rank: int = 0
    holds_indices: bool = False
    """True if the tensor has integer values, as the model's buffer has."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """Tensors of ours that are stored together, in one of several ways; the first is how they are saved."""

    alternatives: tuple[tuple[StoredTensor, ...], ...]

    def matching(self, names: frozenset[str], shapes: Shapes | None = None) -> tuple[StoredTensor, ...]:
        """The way of which most stored names exist, and of those most shapes; the first among equals."""
        known = shapes or {}

        def fits(way: tuple[StoredTensor, ...]) -> tuple[float, float]:
            named = sum(stored.name in names for stored in way)
            return named / len(way), sum(known.get(stored.name) == stored.shape for stored in way) / len(way)

        return max(self.alternatives, key=fits)


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """One way to name all tensors of a model. `ignored` selects other stored tensors that are allowed."""

    name: str
    groups: tuple[StoredGroup, ...]
    ignored: Callable[[str], bool]

    def saved(self) -> tuple[StoredTensor, ...]:
        """The tensors of a checkpoint that is saved in this layout."""
        return tuple(stored for group in self.groups for stored in group.alternatives[0])

    def matching(self, names: frozenset[str], shapes: Shapes | None = None) -> tuple[StoredTensor, ...]:
        """The tensors expected in a checkpoint with these names and, if known, these shapes."""
        return tuple(stored for group in self.groups for stored in group.matching(names, shapes))

    def num_matches(self, names: frozenset[str]) -> int:
        """Number of these names that belong to this layout."""
        return len({stored.name for stored in self.matching(names)} & names)


def stored_parameters(graph: LayerGraph) -> Iterable[tuple[str, Parameter]]:
    """(full name, parameter) of every tensor that a model of this graph holds; tied ones are stored elsewhere."""
    for node, parameter in graph.parameters():
        if not parameter.tied_to:
            yield f"{node.id}.{parameter.name}", parameter


def whole(name: str, tensor: str, parameter: Parameter) -> StoredTensor:
    """A stored tensor that equals one of ours."""
    return StoredTensor(name, parameter.shape, (TensorPiece(tensor),), holds_indices=parameter.index is not None)
