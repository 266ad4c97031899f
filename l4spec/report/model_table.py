"""All models in one table: for each in each precision, does it fit, how long a context, how many GPUs at least."""

from collections.abc import Sequence

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
from planners.deployment import Deployment
from planners.frozen import Frozen
from planners.plan import plan, plan_deployment
from planners.plan_types import Estimates
from planners.request import PlanRequest
from planners.search.least_gpus import MAX_GPUS, least_gpus

PRECISIONS = ("bf16", "fp8", "int4")


class ModelRow(Frozen):
    """One model in one precision. `refusal` is the reason why a scheme cannot store it; then nothing else is known."""

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


class ModelTable(Frozen):
    """All models in all precisions on the same hardware."""

    l4spec_model_table: int = 1
    gpus: str
    hardware: str
    num_gpus: int
    kv_dtype: str
    batch: int
    engine: str
    context_origin: str
    rows: tuple[ModelRow, ...]
    estimated: dict[str, tuple[str, ...]]
    estimates: dict[str, Estimates]


_WORK = ("context", "prompt_tokens", "output_tokens", "max_context", "batch", "concurrency", "prefill_chunk")
ACCEPTED = frozenset(("gpus", "quantization", "kv_dtype", "engine", "memory_fraction", *_WORK))
"""Options that mean the same for every model; the layout is chosen for the longest context."""


def model_table(graphs: Sequence[LayerGraph], asked: PlanRequest, precisions: Sequence[str] = PRECISIONS) -> ModelTable:
    """Plan every model in every precision. Raises UserError for options that no model can be planned with, such as
    unknown names; an error of one model (a scheme, a context beyond its longest sequence, any layout) is reported in
    its row.
    """
    assert asked.gpus is not None, "the table is of one cluster"
    request = asked.changed(objective="max-context")
    cluster = parse_cluster(asked.gpus)
    for precision in precisions:
        quantization_of(precision)
    refused = [error for graph in graphs if (error := _refusal(graph, request))]
    if refused and len(refused) == len(graphs):
        raise refused[0]
    return ModelTable(
        gpus=asked.gpus,
        hardware=cluster.hardware.name,
        num_gpus=cluster.num_gpus,
        kv_dtype=asked.kv_dtype,
        batch=asked.sequences,
        engine=asked.engine,
        context_origin="default" if asked.context is None and asked.prompt_tokens is None else "given",
        rows=tuple(_row(graph, request, precision) for graph in graphs for precision in precisions),
        estimated={graph.name: graph.model.estimated for graph in graphs if graph.model.estimated},
        estimates={graph.name: _estimates(graph) for graph in graphs if graph.model.estimated},
    )


def _refusal(graph: LayerGraph, request: PlanRequest) -> UserError | None:
    """The error of the request for this model, without any hardware; None if there is none."""
    try:
        plan(graph, request, gpus=None, quantization="bf16")
    except UserError as error:
        return error
    return None


def _estimates(graph: LayerGraph) -> Estimates:
    estimated = estimates_of(graph.model.spec)
    return Estimates(params=estimated.params, work=estimated.work)


def _row(graph: LayerGraph, request: PlanRequest, precision: str) -> ModelRow:
    params = count_params(graph)
    row = ModelRow(
        model=graph.name,
        estimated=bool(graph.model.estimated),
        quantization=precision,
        context=request.tokens(graph),
        total_params=params.total,
        active_params=params.active,
    )
    try:
        deployment = Deployment.resolve(graph, request.changed(quantization=precision))
        planned = plan_deployment(deployment)
    except UserError as error:
        return row.model_copy(update={"refusal": str(error)})
    least = least_gpus(deployment)
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


def model_table_page(table: ModelTable) -> Page:
    """The table, its assumptions, and its estimated numbers."""
    headers = ("model", "total", "active", "weights in", "weights", "fits", "longest context", "least GPUs")
    contexts = sorted({row.context for row in table.rows})
    tokens = " or ".join(whole(context) for context in contexts)
    origin = "the default" if table.context_origin == "default" else "as asked"
    sequences = "1 sequence" if table.batch == 1 else f"{whole(table.batch)} sequences"
    title = f"All models on {table.gpus} ({table.hardware})"
    assumed = (
        f"Fits: {sequences} of {tokens} tokens ({origin}), KV cache in {table.kv_dtype}, "
        f"cache policy {table.engine}; the layout with the longest context.",
        f"Least GPUs: the fewest {table.hardware} that hold the same, in any legal layout.",
    )
    sections = [
        Section(title, (Table(headers, tuple(_cells(row, _marks(table, row)) for row in table.rows), "lrrlrlrl"),)),
        Section("", (Lines(assumed),)),
    ]
    refusals = dict.fromkeys(f"{row.model}: {row.refusal}" for row in table.rows if row.refusal)
    notes = tuple(refusals) + tuple(
        f"{name}: {note}"
        for name, fields in table.estimated.items()
        for note in estimate_notes(fields, table.estimates[name])
    )
    if notes:
        sections.append(Section("", (Lines(notes),)))
    return tuple(sections)


def _marks(table: ModelTable, row: ModelRow) -> Marked:
    estimates = table.estimates.get(row.model, Estimates())
    return marked(estimates.params, estimates.work)


def _cells(row: ModelRow, figures: Marked) -> tuple[str, ...]:
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
