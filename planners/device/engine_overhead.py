"""Engine overhead per device besides weights, cache and activations: tables, buffers, graphs, the driver.

A RoPE table follows from a formula. Collectives' buffers, CUDA graphs and the driver's part follow from none: they are
read from published logs, and every such term carries the spread of its readings and their source.
"""

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import RotaryTable
from planners.catalog import Engine, Hardware
from planners.plan_types import MemoryTerm

_KINDS = ("non_torch", "cuda_graphs")
ROPE_ELEMENT_BYTES = 2


@kept_with(maxsize=1024)
def reserved_terms(graph: LayerGraph, engine: Engine, hardware: Hardware | None, tp: int) -> tuple[MemoryTerm, ...]:
    """Every such term of one device at this tensor-parallel degree."""
    terms = [*_rope_table(graph, engine), *_calibrated(engine, tp)]
    if engine.memory is None and hardware is not None:
        terms.extend(_driver(hardware))
    return tuple(terms)


def uncovered_bytes(engine: Engine, tp: int) -> int:
    """Bytes of the calibrated terms that an engine keeps outside the share of memory that it gives itself."""
    covers = _KINDS if engine.memory is None else engine.memory.covers
    return sum(term.num_bytes for term in engine.reserved_for(tp) if term.kind in _KINDS and term.kind not in covers)


def rope_table_bytes(graph: LayerGraph) -> int:
    """A cos/sin table of max_seq_len rows for each distinct rotation of the text: rotary_dim elements of 2 bytes."""
    positions = graph.model.text.stack.width.max_seq_len
    return sum(positions * rotation.width * ROPE_ELEMENT_BYTES for rotation in _rotations(graph))


def _rope_table(graph: LayerGraph, engine: Engine) -> list[MemoryTerm]:
    if not engine.rope_table or not _rotations(graph):
        return []
    positions = graph.model.text.stack.width.max_seq_len
    text = " + ".join(
        f"{positions:,} positions x {rotation.width} x {ROPE_ELEMENT_BYTES} B" for rotation in _rotations(graph)
    )
    size = rope_table_bytes(graph)
    return [MemoryTerm(name="rope table", bytes=size, origin="exact", source=engine.source, arithmetic=text)]


@kept_with(maxsize=64)
def _rotations(graph: LayerGraph) -> tuple[RotaryTable, ...]:
    """The distinct rotations of the language model by position."""
    mixing = (group.declaration.mixing for group in graph.groups if group.first.scope == "text")
    rotations = (rotation for mixed in mixing if mixed is not None for rotation in mixed.rotations)
    return tuple(dict.fromkeys(rotation for rotation in rotations if rotation.over == "positions"))


def _calibrated(engine: Engine, tp: int) -> list[MemoryTerm]:
    return [
        MemoryTerm(
            name=term.kind.replace("_", " "),
            bytes=term.num_bytes,
            origin="calibrated",
            spread=term.spread,
            source="; ".join(term.sources),
            arithmetic=term.note,
        )
        for term in engine.reserved_for(tp)
        if term.kind in _KINDS
    ]


def _driver(hardware: Hardware) -> list[MemoryTerm]:
    free = hardware.memory.free_before_load
    if free is None:
        return []
    return [
        MemoryTerm(
            name="driver and context",
            bytes=hardware.usable.num_bytes - free.value,
            origin="calibrated",
            source=free.source,
            arithmetic="physical - free before load",
        )
    ]
