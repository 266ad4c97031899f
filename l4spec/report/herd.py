"""The herd in one table: for each model and precision, does it fit, how long a context, how many GPUs at least."""

from collections.abc import Sequence
from dataclasses import dataclass

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.plan_page import estimated_note
from l4spec.report.quantities import Figures, gib, whole
from planners.catalog import quantization as quantization_of
from planners.cluster import parse_cluster
from planners.least_gpus import MAX_GPUS, LeastGpus, least_gpus
from planners.plan import plan
from planners.plan_types import Frozen, Layout, Plan

PRECISIONS = ("bf16", "fp8", "int4")


class HerdRow(Frozen):
    """One model in one precision. `refusal` says why a scheme cannot store the model; then nothing else is known."""

    model: str
    estimated: bool
    quantization: str
    context: int
    total_params: int
    active_params: int
    weight_bytes: int | None = None
    device_bytes: int | None = None
    capacity_bytes: int | None = None
    fits: bool | None = None
    layout: Layout | None = None
    max_context: int | None = None
    max_batch: int | None = None
    least_gpus: int | None = None
    least_layout: Layout | None = None
    refusal: str | None = None


class Herd(Frozen):
    """All models in all precisions on the same hardware."""

    l4spec_herd: int = 1
    gpus: str
    hardware: str
    num_gpus: int
    kv_dtype: str
    batch: int
    engine: str
    context_origin: str
    rows: tuple[HerdRow, ...]
    estimated: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what every model of the herd is planned."""

    gpus: str
    kv_dtype: str = "bf16"
    context: int | None = None
    batch: int = 1
    engine: str = "ideal"

    def plan(self, graph: LayerGraph, quantization: str, gpus: str | None) -> Plan:
        """One model in one precision, with the layout of the longest context."""
        return plan(
            graph,
            gpus=gpus,
            quantization=quantization,
            kv_dtype=self.kv_dtype,
            context=self.context,
            batch=self.batch,
            engine=self.engine,
            objective="max-context",
        )

    def least(self, graph: LayerGraph, quantization: str, context: int) -> LeastGpus | None:
        """The least number of the same GPUs on which that model fits."""
        return least_gpus(
            graph,
            parse_cluster(self.gpus).hardware,
            quantization=quantization,
            kv_dtype=self.kv_dtype,
            context=context,
            batch=self.batch,
            engine=self.engine,
        )


def plan_herd(graphs: Sequence[LayerGraph], asked: Conditions, precisions: Sequence[str] = PRECISIONS) -> Herd:
    """Plan every model in every precision. Raises UserError for unknown names; a scheme that cannot store a model or
    a model that no layout of the GPUs allows is told in its row."""
    cluster = parse_cluster(asked.gpus)
    for precision in precisions:
        quantization_of(precision)
    return Herd(
        gpus=asked.gpus,
        hardware=cluster.hardware.name,
        num_gpus=cluster.num_gpus,
        kv_dtype=asked.kv_dtype,
        batch=asked.batch,
        engine=asked.engine,
        context_origin="default" if asked.context is None else "given",
        rows=tuple(_row(graph, asked, precision) for graph in graphs for precision in precisions),
        estimated={graph.name: graph.model.estimated for graph in graphs if graph.model.estimated},
    )


def _row(graph: LayerGraph, asked: Conditions, precision: str) -> HerdRow:
    bare = asked.plan(graph, "bf16", None)
    row = HerdRow(
        model=graph.name,
        estimated=bool(graph.model.estimated),
        quantization=precision,
        context=bare.deployment.context,
        total_params=bare.params.total,
        active_params=bare.params.active,
    )
    try:
        found = asked.plan(graph, precision, asked.gpus)
    except UserError as error:
        return row.model_copy(update={"refusal": str(error)})
    least = asked.least(graph, precision, row.context)
    return row.model_copy(
        update={
            "weight_bytes": found.weights.bytes,
            "device_bytes": found.memory_per_device.total_bytes,
            "capacity_bytes": found.memory_per_device.capacity_bytes,
            "fits": found.fits,
            "layout": found.layout,
            "max_context": found.max_context,
            "max_batch": found.max_batch,
            "least_gpus": least.num_gpus if least else None,
            "least_layout": least.layout if least else None,
        }
    )


def herd_page(herd: Herd) -> Page:
    """The table, what it assumes, and what is estimated in it."""
    headers = ("model", "total", "active", "weights in", "weights", "fits", "longest context", "least GPUs")
    contexts = sorted({row.context for row in herd.rows})
    tokens = " or ".join(whole(context) for context in contexts)
    origin = "the default" if herd.context_origin == "default" else "as asked"
    title = f"The herd on {herd.gpus} ({herd.hardware})"
    assumed = (
        f"Fits: {whole(herd.batch)} sequence(s) of {tokens} tokens ({origin}), KV cache in {herd.kv_dtype}, "
        f"cache policy {herd.engine}; the layout with the longest context.",
        f"Least GPUs: {herd.hardware} that hold the same at the least, with a legal layout of theirs.",
    )
    sections = [
        Section(title, (Table(headers, tuple(_cells(row) for row in herd.rows), "lrrlrlrl"),)),
        Section("", (Lines(assumed),)),
    ]
    notes = tuple(f"{name}: {estimated_note(fields)}" for name, fields in herd.estimated.items())
    if notes:
        sections.append(Section("", (Lines(notes),)))
    return tuple(sections)


def _cells(row: HerdRow) -> tuple[str, ...]:
    figures = Figures(row.estimated)
    start = (row.model, figures.count(row.total_params), figures.count(row.active_params), row.quantization)
    if row.weight_bytes is None or row.device_bytes is None or row.capacity_bytes is None:
        return (*start, "-", row.refusal or "-", "-", "-")
    missing = row.device_bytes - row.capacity_bytes
    fits = "yes" if row.fits else f"no, {gib(missing)} a GPU too much"
    context = figures.whole(row.max_context) if row.max_context else "-"
    least = f"more than {MAX_GPUS:,}"
    if row.least_gpus is not None:
        least = f"{figures.whole(row.least_gpus)} ({row.least_layout})"
    return (*start, figures.gib(row.weight_bytes), fits, context, least)
