"""Seconds of a step of our own module on a calibrated machine: the sum of its pieces.

A layer is the matrix products that it declares, the element-wise work and attention between them, each looked up in the
measured tables at its sizes, and a constant for its kind. A pass adds a constant, and one for each rotation table.
Weights and caches are read from memory or from the processor's caches, depending on the bytes that a pass reads in all.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.common.eager import Piece
from l4spec.layers.declaration import RotaryTable, Work
from planners.catalog.cpu_profile import EagerTimes, Pieces
from planners.module.activation_ledger import activation_bytes
from planners.module.pieces import code_of, hit_experts, pieces_of
from planners.module.time_table import seconds_at, share_from_memory
from planners.timing.layer_demand import UNIFORM, Routing

ITEM_BYTES = {"fp32": 4, "bf16": 2}
ROTATION = "rotation"
"""Key under `layer` of the time of a rotation table, once per pass."""
_READING = ("product", "expert_product", "cached")
"""Pieces that are measured cold with other weights or another cache each time, their code as it is."""
_CODE_LEAST, _CODE_MOST = 0.15, 0.45
"""Least and largest coldness of a pass's code: never as hot as in a loop, and never as cold as after 64 MiB of weights,
since the interpreter runs all the time. Fitted on the models of seed 1 of `benchmarks/predict_time.py`."""


@dataclass(frozen=True, slots=True)
class GroupTime:
    """Seconds of all equal layers of a group in one pass."""

    group: LayerGroup
    seconds: float


@dataclass(frozen=True)
class EagerModel:
    """A model in one number format on a calibrated machine."""

    graph: LayerGraph
    times: EagerTimes
    dtype: str
    routing: Routing = UNIFORM

    @property
    def pieces(self) -> Pieces:
        """Measured pieces in the model's number format."""
        return self.times.pieces[self.dtype]

    def seconds(self, work: Work) -> float:
        """Seconds of one pass over `work` of text tokens."""
        return self.constant(self.cold(work)) + sum(time.seconds for time in self.by_group(work))

    def cold(self, work: Work) -> float:
        """Share of the bytes that a pass reads, code included, that comes from memory rather than from the caches."""
        return share_from_memory(self.times.resident[self.dtype], self.read_bytes(work))

    def by_group(self, work: Work) -> tuple[GroupTime, ...]:
        """Seconds of each group of equal text layers, in graph order, without the pass's constant."""
        resident, num_bytes = self.times.resident[self.dtype], self.read_bytes(work)
        groups = [group for group in self.graph.groups if group.first.scope == "text"]
        kinds = Counter[str]()
        for group in groups:
            kinds[group.first.kind] += group.count
        cold = share_from_memory(resident, num_bytes)
        code = {kind: _code(share_from_memory(resident, num_bytes / count)) for kind, count in kinds.items()}
        return tuple(
            GroupTime(group, group.count * self.layer_seconds(group, work, cold, code[group.first.kind]))
            for group in groups
        )

    def constant(self, cold: float) -> float:
        """Seconds of a pass besides its layers, of which this share would not stay in the caches."""
        cold = _code(cold)
        return self.pieces.forward.at(cold) + self._layer(ROTATION, cold) * len(self._rotations)

    def _layer(self, kind: str, cold: float) -> float:
        pieces = self.pieces.layer.get(kind)
        return 0.0 if pieces is None else pieces.at(cold)

    @cached_property
    def _rotations(self) -> set[RotaryTable]:
        mixing = (group.declaration.mixing for group in self.graph.groups)
        return {rotation for mixed in mixing if mixed is not None for rotation in mixed.rotations}

    def layer_seconds(self, group: LayerGroup, work: Work, cold: float, code: float) -> float:
        """Seconds of one layer of a group.

        `cold` is the share of weights and caches that comes from memory, `code` that of the code of its kind, which is
        run again sooner: as often in a pass as there are layers of the kind.
        """
        hit = hit_experts(group, work, self.routing)
        pieces = sum(
            self.piece_seconds(piece, cold if piece.name in _READING else code)
            for piece in pieces_of(group.first, work, hit)
        )
        return self._layer(code_of(group.first), code) + pieces

    def piece_seconds(self, piece: Piece, cold: float) -> float:
        """Seconds of a piece, all its times."""
        if piece.name == "expert":
            return piece.times * self.pieces.expert.at(cold)
        return piece.times * seconds_at(getattr(self.pieces, piece.name), piece.sizes, cold)

    def read_bytes(self, work: Work) -> float:
        """Bytes that one pass goes through before it comes to the same weights again."""
        groups = (group for group in self.graph.groups if group.first.scope == "text")
        weight_bytes = sum(group.count * self.layer_bytes(group, work) for group in groups)
        return weight_bytes + activation_bytes(self.graph, work, item_bytes=ITEM_BYTES[self.dtype])

    def layer_bytes(self, group: LayerGroup, work: Work) -> float:
        """Bytes of weights and cache that one layer reads; of experts those that are expected to get a row."""
        elements = 0.0
        for parameter in group.declaration.parameters:
            if parameter.is_per_expert:
                elements += hit_experts(group, work, self.routing) * prod(parameter.shape[1:])
            elif parameter.role != "embedding":
                elements += prod(parameter.shape)
        for entry in group.declaration.cache:
            read = entry.bound.num_read(work.num_cached + work.num_queries)
            elements += work.num_sequences * read * entry.elements_per_token
        return ITEM_BYTES[self.dtype] * elements


def _code(share: float) -> float:
    """Coldness of code of which this share would not stay in the caches."""
    return _CODE_LEAST + (_CODE_MOST - _CODE_LEAST) * share
