"""The herd in one table: for each model and precision, does it fit, how long a context, how many GPUs at least."""

from collections.abc import Sequence
from dataclasses import dataclass

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.plan_page import estimate_notes
from l4spec.report.quantities import Marked, marked, whole
from l4spec.sharding.layout import Layout
from l4spec.spec.estimates import estimates_of
from planners.catalog import quantization as quantization_of
from planners.catalog.cluster import parse_cluster
from planners.counts.params import count_params
from planners.plan import plan
from planners.plan_types import Estimates, Frozen, Plan
from planners.request import DEFAULT_CONTEXT, max_seq_len
from planners.search.least_gpus import MAX_GPUS, LeastGpus, least_gpus

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
    estimates: dict[str, Estimates]


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
    """Plan every model in every precision. Raises UserError for what none can be planned with, as unknown names; what
    one of them cannot (a scheme, a context beyond its longest sequence, any layout) is told in its row."""
    cluster = parse_cluster(asked.gpus)
    for precision in precisions:
        quantization_of(precision)
    refused = [refusal for graph in graphs if (refusal := _refusal(graph, asked))]
    if refused and len(refused) == len(graphs):
        raise refused[0]
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
        estimates={graph.name: _estimates(graph) for graph in graphs if graph.model.estimated},
    )


def _refusal(graph: LayerGraph, asked: Conditions) -> UserError | None:
    """What is wrong with the conditions for this model, without any hardware."""
    try:
        asked.plan(graph, "bf16", None)
    except UserError as error:
        return error
    return None


def _estimates(graph: LayerGraph) -> Estimates:
    estimated = estimates_of(graph.model.spec)
    return Estimates(params=estimated.params, work=estimated.work)


def _row(graph: LayerGraph, asked: Conditions, precision: str) -> HerdRow:
    params = count_params(graph)
    row = HerdRow(
        model=graph.name,
        estimated=bool(graph.model.estimated),
        quantization=precision,
        context=min(DEFAULT_CONTEXT, max_seq_len(graph)) if asked.context is None else asked.context,
        total_params=params.total,
        active_params=params.active,
    )
    try:
        planned = asked.plan(graph, precision, asked.gpus)
    except UserError as error:
        return row.model_copy(update={"refusal": str(error)})
    least = asked.least(graph, precision, row.context)
    return row.model_copy(
        update={
            "weight_bytes": planned.weights.bytes,
            "device_bytes": planned.memory_per_device.total_bytes,
            "capacity_bytes": planned.memory_per_device.capacity_bytes,
            "fits": planned.fits,
            "layout": planned.layout,
            "max_context": planned.max_context,
            "max_batch": planned.max_batch,
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
        Section(title, (Table(headers, tuple(_cells(row, _marks(herd, row)) for row in herd.rows), "lrrlrlrl"),)),
        Section("", (Lines(assumed),)),
    ]
    refusals = dict.fromkeys(f"{row.model}: {row.refusal}" for row in herd.rows if row.refusal)
    notes = tuple(refusals) + tuple(
        f"{name}: {note}"
        for name, fields in herd.estimated.items()
        for note in estimate_notes(fields, herd.estimates[name])
    )
    if notes:
        sections.append(Section("", (Lines(notes),)))
    return tuple(sections)


def _marks(herd: Herd, row: HerdRow) -> Marked:
    estimates = herd.estimates.get(row.model, Estimates())
    return marked(estimates.params, estimates.work)


def _cells(row: HerdRow, figures: Marked) -> tuple[str, ...]:
    sizes = figures.sizes
    start = (row.model, sizes.count(row.total_params), sizes.count(row.active_params), row.quantization)
    if row.weight_bytes is None or row.device_bytes is None or row.capacity_bytes is None:
        return (*start, "-", "not planned, see below", "-", "-")
    missing = row.device_bytes - row.capacity_bytes
    fits = "yes" if row.fits else f"no, {figures.work.gib(missing)} a GPU too much"
    context = figures.work.whole(row.max_context) if row.max_context else "-"
    least = f"more than {MAX_GPUS:,}"
    if row.least_gpus is not None:
        least = f"{figures.work.whole(row.least_gpus)} ({row.least_layout})"
    return (*start, sizes.gib(row.weight_bytes), fits, context, least)
