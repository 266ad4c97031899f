"""`l4spec build`: the module tree of a built model, its counts beside the plan's, and how its first run went."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.scheme import Quantization
from l4spec.report.page import Code, Facts, Lines, Page, Section, Table, ranges
from l4spec.report.quantities import count, exact_bytes, whole
from l4spec.units import gib
from planners.catalog import quantization
from planners.counts.params import count_params
from planners.counts.weights import scheme_of, weigh

if TYPE_CHECKING:
    from l4spec.runtime.module_inventory import ModuleContents, TreeRow
    from l4spec.runtime.smoke_run import Trial

_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Built:
    """Result of `l4spec build`; `trial` and `device` are None if only the structure was built."""

    model: str
    contents: "ModuleContents"
    planned_by_part: dict[str, int]
    planned_bytes: int
    quantization: str | None = None
    device: str | None = None
    dtype: str | None = None
    build_seconds: float | None = None
    trial: "Trial | None" = None

    @property
    def agrees(self) -> bool:
        """True if parameters of each part, and total bytes, equal the planner's."""
        built_by_part, planned = self.contents.by_part, self.planned_by_part
        return self.contents.num_bytes == self.planned_bytes and all(
            built_by_part.get(part, 0) == planned.get(part, 0) for part in built_by_part.keys() | planned.keys()
        )

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """The same as one JSON document."""
        return json.dumps({"l4spec_build": 1, **asdict(self), "agrees": self.agrees}, indent=indent)


def planned_parts(graph: LayerGraph) -> dict[str, int]:
    """Parameters by part as the planner counts them; parts without any are left out."""
    return {part: number for part, number in count_params(graph).by_part.items() if number}


def planned_bytes(graph: LayerGraph, table: Quantization | None, dtype: str) -> int:
    """Bytes of all tensors as the planner weighs them, under a scheme or in one number format."""
    return weigh(graph, scheme_of(table or quantization(dtype))).bytes


def built_page(built: Built) -> Page:
    """Tree, parts, and the run if there was one."""
    contents = built.contents
    verdict = "as planned" if built.agrees else "NOT as planned"
    shaped = f"packed as {built.quantization}" if built.quantization else "named and shaped as declared"
    lead = f"{built.model}: {whole(contents.num_tensors)} tensors, {shaped}; "
    lead += f"{count(contents.num_parameters)} parameters ({whole(contents.num_parameters)}), {verdict}"
    sections = [
        Section("", (Lines((lead,)),)),
        Section("Modules", (Code(tuple(_tree_lines(contents))),)),
        Section("Parts", (Table(("part", "built", "planned"), tuple(_part_rows(built)), "l"),)),
        Section("Weights", (Facts(tuple(_byte_facts(built))),)),
    ]
    if built.trial is not None:
        sections.append(Section("Run", (Facts(tuple(_run_facts(built, built.trial))),)))
    return tuple(sections)


def _tree_lines(contents: "ModuleContents") -> Iterator[str]:
    """The module tree in columns, without modules that have no tensor (additions, the merge of images)."""
    rows = [_tree_row(row) for row in contents.rows if row.num_tensors]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, kind, tensors, parameters in rows:
        yield f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {tensors:>{widths[2]}}  {parameters:>{widths[3]}}"


def _tree_row(row: "TreeRow") -> tuple[str, str, str, str]:
    name = row.name or f"{ranges(row.blocks)} ({len(row.blocks)} ×)"
    kind = f"{row.class_name} ({row.label})" if row.label else row.class_name
    tensors = f"{whole(row.num_tensors)} tensor{'s' if row.num_tensors > 1 else ''}"
    return _INDENT * row.depth + name, kind, tensors, count(row.num_parameters)


def _part_rows(built: Built) -> Iterator[tuple[str, str, str]]:
    built_by_part, planned = built.contents.by_part, built.planned_by_part
    for part in sorted(
        built_by_part.keys() | planned.keys(), key=lambda part: -max(built_by_part.get(part, 0), planned.get(part, 0))
    ):
        yield part, whole(built_by_part.get(part, 0)), whole(planned.get(part, 0))


def _byte_facts(built: Built) -> Iterator[tuple[str, str]]:
    if built.quantization:
        yield "packed as", built.quantization
    yield "in memory", f"{exact_bytes(built.contents.num_bytes)} ({gib(built.contents.num_bytes)})"
    yield "planned", exact_bytes(built.planned_bytes)


def _run_facts(built: Built, trial: "Trial") -> Iterator[tuple[str, str]]:
    image = f", {trial.num_image_tokens} of them an image tile's" if trial.num_image_tokens else ""
    yield "built on", f"{built.device} in {built.quantization or built.dtype}, {built.build_seconds:.1f} s"
    yield "forward", f"{trial.num_tokens} tokens{image}: {_milliseconds(trial.forward_seconds)}"
    yield "loss", f"{trial.loss:.3f} nats per token (guessing blindly: {trial.blind_loss:.3f})"
    yield "generated", " ".join(map(str, trial.generated))
    speed = f"{_milliseconds(trial.decode_seconds_per_token)} per token"
    yield "generation", f"{_milliseconds(trial.prefill_seconds)} TTFT, then {speed}"
    yield "memory", f"weights {gib(trial.weight_bytes)}, cache {gib(trial.cache_bytes)}, peak {gib(trial.peak_bytes)}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
