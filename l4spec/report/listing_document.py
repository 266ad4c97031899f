"""JSON documents of `l4spec ls` and `l4spec show`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.about import About
from planners.counts.params import count_params


class Listed(BaseModel):
    """Everything of one kind that is shipped; catalogue entries are there whole, each number with its source."""

    model_config = ConfigDict(frozen=True)

    l4spec_ls: Literal[1] = 1
    what: str
    entries: tuple[dict[str, Any], ...]


class ShownPart(BaseModel):
    """Layers that share a declaration: how many there are, their parameters and the settings that they were given."""

    model_config = ConfigDict(frozen=True)

    scope: str
    part: str
    kind: str
    count: int
    parameters_each: int
    active_each: int
    settings: dict[str, Any]


class ShownLayer(BaseModel):
    """One block of the language model."""

    model_config = ConfigDict(frozen=True)

    attention: str | None
    ffn: str | None
    form: str


class Shown(BaseModel):
    """A model's structure: totals, the blocks in order, its parts, and its estimated fields."""

    model_config = ConfigDict(frozen=True)

    l4spec_show: Literal[1] = 1
    model: str
    description: str
    parameters: int
    active_parameters: int
    hidden_size: int
    vocabulary: int
    max_seq_len: int
    dtype: str
    layers: tuple[ShownLayer, ...]
    parts: tuple[ShownPart, ...]
    estimated: tuple[str, ...]
    sources: tuple[str, ...]
    about: About | None


def listed(what: str) -> Listed:
    """The contents of `l4spec.report.listings.listing` as a document."""
    return Listed(what=what, entries=tuple(_ENTRIES.get(what, _documents)(what)))


def _specs(_: str) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from l4spec.report.spec_index import entries

    return [asdict(entry) for entry in entries()]


def _documents(what: str) -> list[dict[str, Any]]:
    from l4spec.library import shipped_of
    from l4spec.spec.document import load_document

    names = shipped_of(what.removesuffix("s"))
    return [{"name": name, "description": load_document(name).data.get("description") or ""} for name in names]


def _hardware(_: str) -> list[dict[str, Any]]:
    from l4spec.report.listings import hardware_places
    from planners.catalog import hardware

    return [
        {**hardware(place).model_dump(mode="json", exclude_none=True), "name": name}
        for name, place in hardware_places().items()
    ]


def _catalogue(what: str) -> list[dict[str, Any]]:
    from planners.catalog import engine, quantization, shipped_names

    if what == "engines":
        return [engine(name).model_dump(mode="json", exclude_none=True) for name in shipped_names("engines")]
    return [quantization(name).model_dump(mode="json", exclude_none=True) for name in shipped_names("quantization")]


def _kinds(_: str) -> list[dict[str, Any]]:
    from l4spec.report.listings import described_kinds

    return [{"name": name, "slot": slot, "description": says} for name, slot, says in described_kinds()]


_ENTRIES = {
    "specs": _specs,
    "hardware": _hardware,
    "quantization": _catalogue,
    "engines": _catalogue,
    "kinds": _kinds,
}


def shown(graph: LayerGraph) -> Shown:
    """The contents of `l4spec.report.show.show_page` as a document."""
    spec, text, params = graph.model.spec, graph.model.text, count_params(graph)
    return Shown(
        model=graph.name,
        description=spec.description or "",
        parameters=params.total,
        active_parameters=params.active,
        hidden_size=text.stack.width.hidden_size,
        vocabulary=text.embedding.vocab_size,
        max_seq_len=text.stack.width.max_seq_len,
        dtype=text.dtype,
        layers=tuple(
            ShownLayer(
                attention=None if block.attention is None else block.attention.name,
                ffn=block.ffn_name,
                form=block.form,
            )
            for block in text.stack.blocks
        ),
        parts=tuple(_parts(graph)),
        estimated=tuple(spec.estimated),
        sources=tuple(spec.sources),
        about=spec.about,
    )


def _parts(graph: LayerGraph) -> list[ShownPart]:
    return [
        ShownPart(
            scope=group.first.scope,
            part=group.first.label,
            kind=group.first.kind,
            count=group.count,
            parameters_each=group.declaration.num_parameters,
            active_each=group.declaration.num_active_parameters,
            settings=group.first.spec.model_dump(mode="json", exclude_none=True),
        )
        for group in graph.groups
    ]
