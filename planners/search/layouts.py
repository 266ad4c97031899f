"""Legal layouts, the longest context and the largest batch that fit, by repeated `Placement.room` queries."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING

from l4spec.errors import UserError
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout, candidate_layouts, divisors, products_of
from l4spec.sharding.rules import illegal_reason
from l4spec.sharding.sequence import short_reason, unbalanced_reason
from l4spec.units import ceil_div
from planners.deployment import Deployment
from planners.device.memory import Placement, Setting, place
from planners.plan_types import IllegalLayout, KeptState, LayoutRow, Objective
from planners.request import PlanRequest

if TYPE_CHECKING:
    from planners.device.training_state import TrainSetting

MAX_BATCH = 1 << 20
MANY_DEVICES = 4096


def largest(room: Callable[[int], int], limit: int) -> int:
    """The largest n in 1..limit with `room(n) >= 0`, which it is up to some point and not after it; 0 if it never is.

    Memory grows nearly linearly, so most steps interpolate between the ends; every third one halves the interval.
    """
    if limit < 1 or (room_low := room(1)) < 0:
        return 0
    if (room_high := room(limit)) >= 0:
        return limit
    low, high = 1, limit  # room_low >= 0 > room_high
    step = 0
    while high - low > 1:
        step += 1
        middle = (low + high) // 2 if step % 3 == 0 else low + (high - low) * room_low // (room_low - room_high)
        middle = min(max(middle, low + 1), high - 1)
        if (free := room(middle)) >= 0:
            low, room_low = middle, free
        else:
            high, room_high = middle, free
    return low


@kept_with(lambda placement: placement.setting.graph, maxsize=1024)
def max_context(placement: Placement, batch: int) -> int:
    """Tokens of the longest context, up to the model's max_seq_len, at which `batch` sequences fit; 0 if none does."""
    graph = placement.setting.graph
    longest = largest(lambda context: placement.room(context, batch), graph.model.text.stack.width.max_seq_len)
    cp = placement.layout.cp
    if placement.setting.train is not None:
        return longest if cp == 1 else longest - longest % (2 * cp)
    return 0 if short_reason(graph, cp, longest) else longest


def max_batch(placement: Placement, context: int) -> int:
    """Most sequences of `context` tokens that fit together, up to 2**20; 0 if not even one does."""
    most = largest(lambda batch: placement.room(context, batch), MAX_BATCH)
    return most if most == MAX_BATCH else most - most % _batch_step(placement.setting, placement.layout)


def _batch_step(setting: Setting, layout: Layout) -> int:
    """Sequences that a batch is a multiple of: with virtual stages, pp micro-batches of every data-parallel rank."""
    if setting.train is None or setting.train.virtual_stages == 1:
        return 1
    return setting.train.micro_batch * layout.pp * layout.dp * layout.ep


def layouts_for(
    setting: Setting, num_devices: int, request: PlanRequest, context: int, batch: int
) -> tuple[tuple[Layout, ...], tuple[IllegalLayout, ...]]:
    """Legal layouts of `num_devices` devices that a request allows, and the illegal with why.

    They are for `batch` sequences of `context` tokens.
    """
    legal, illegal = [], []
    for layout in request.allowed(layouts_to_try(setting.graph, num_devices, request.cp or 1)):
        reason = why_not(setting, layout, context, batch)
        if reason is None:
            legal.append(layout)
        else:
            illegal.append(IllegalLayout(layout=layout, reason=reason))
    return tuple(legal), tuple(illegal)


def layouts_to_try(graph: LayerGraph, num_devices: int, cp: int) -> Iterable[Layout]:
    """Every layout of `num_devices` devices; of more than `MANY_DEVICES` only one for a degree that no layout may have.

    A million devices can be laid out in 90,000 ways, nearly all of them with a degree that the model forbids.
    """
    if num_devices <= MANY_DEVICES:
        return candidate_layouts(num_devices, cp)
    others, left_over = divmod(num_devices, cp)
    every = [] if left_over else divisors(others)
    legal = [
        [n for n in every if illegal_reason(graph, Layout(**{axis: n}), uneven_experts=True) is None]
        for axis in ("tp", "ep", "pp")
    ]
    forbidden = (
        Layout(**{axis: degree, "dp": others // degree, "cp": cp})
        for axis, known in zip(("tp", "ep", "pp"), legal, strict=True)
        for degree in sorted(set(every) - set(known))
    )
    return chain(products_of(others, cp, *legal), forbidden)


def why_not(setting: Setting, layout: Layout, context: int, batch: int = 1) -> str | None:
    """Reason why a layout cannot be used: the model's axes, too short a context, or shards that no scheme packs.

    In training also a length or a batch that ranks cannot divide as the layout requires.
    """
    reason = ruled_out(setting, layout) or undivided(setting, layout, context, batch)
    if reason is not None:
        return reason
    try:
        place(setting, Layout(tp=layout.tp, ep=layout.ep, cp=layout.cp))  # every stage packs the same shards
    except UserError as error:
        return str(error)
    return None


def undivided(setting: Setting, layout: Layout, context: int, batch: int) -> str | None:
    """Reason why ranks cannot divide sequences of `context` tokens, or run the batch's in an interleaved pipeline."""
    train = setting.train
    if train is None:
        return short_reason(setting.graph, layout.cp, context)
    return unbalanced_reason(layout.cp, context) or _not_interleaved(train, layout, batch)


def _not_interleaved(train: "TrainSetting", layout: Layout, batch: int) -> str | None:
    """Reason why a pipeline cannot be interleaved: as Megatron's, it runs micro-batches pp by pp (arXiv:2104.04473)."""
    if train.virtual_stages == 1:
        return None
    if layout.pp == 1:
        return f"{train.virtual_stages} virtual stages need a pipeline, and pp=1"
    sequences = ceil_div(batch, layout.dp * layout.ep)
    micro_batches = ceil_div(sequences, min(train.micro_batch, sequences))
    if micro_batches % layout.pp == 0:
        return None
    return (
        f"virtual stages need a multiple of pp={layout.pp} micro-batches, and a data-parallel rank has "
        f"{micro_batches:,}: batch {batch:,} over dp={layout.dp} x ep={layout.ep}, micro-batches of {train.micro_batch}"
    )


def ruled_out(setting: Setting, layout: Layout) -> str | None:
    """Reason why the model's axes, or the engine, forbid a layout; None if they allow it.

    vLLM (fused_moe/layer.py, `determine_expert_map`) and TensorRT-LLM give the first ranks one expert more where ep
    does not divide them; SGLang and training do not.
    """
    trains = setting.train is not None
    uneven = not trains and not setting.engine.even_experts
    chunks = setting.virtual_stages
    return illegal_reason(setting.graph, layout, uneven_experts=uneven, virtual_stages=chunks, trains=trains)


def row_of(deployment: Deployment, layout: Layout) -> LayoutRow:
    """Memory and limits of a layout."""
    placement, context, batch = place(deployment.setting, layout), deployment.context, deployment.batch
    tightest = placement.tightest(context, batch)
    return LayoutRow(
        layout=layout,
        fits=placement.has_room(tightest) and _takes_longest(deployment, placement),
        total_bytes=tightest.total,
        max_context=max_context(placement, batch),
        max_batch=max_batch(placement, context),
        training=_training(deployment.setting.train),
    )


def _training(train: "TrainSetting | None") -> KeptState | None:
    if train is None:
        return None
    return KeptState(
        zero_stage=train.zero_stage, activation_checkpointing=train.checkpointing, micro_batch=train.micro_batch
    )


def fits(deployment: Deployment, placement: Placement) -> bool:
    """True if every device has room for the batch, and for one sequence as long as the engine's limit."""
    return placement.fits(deployment.context, deployment.batch) and _takes_longest(deployment, placement)


def _takes_longest(deployment: Deployment, placement: Placement) -> bool:
    limit = deployment.request.max_context
    return limit is None or placement.fits(limit, 1)


def by_memory(
    rows: Iterable[LayoutRow], objective: Objective, gpus_per_host: int, *, training: bool, batch: int
) -> LayoutRow:
    """The row that serves an objective of memory best; among equals the simplest one.

    max-free-memory: the fullest device holds the least. simplest: fits, then no pipeline, no expert parallelism, and
    tensor parallelism as wide as a host; for training the fewest devices per replica that leave no data-parallel rank
    without a sequence. max-context: the longest context. min-gpus: fits with the fewest devices per replica. Where
    nothing fits, the row whose fullest device holds the least comes first.
    """

    def simplest(row: LayoutRow) -> tuple[int, ...]:
        layout = row.layout
        return (int(layout.tp > gpus_per_host), layout.pp, layout.ep, -layout.tp)

    def excess(row: LayoutRow) -> int:
        return 0 if row.fits else row.total_bytes

    def replica(row: LayoutRow) -> int:
        return row.layout.tp * row.layout.ep * row.layout.pp

    def idle(row: LayoutRow) -> int:
        return max(row.layout.dp * row.layout.ep - batch, 0)

    keys: dict[str, Callable[[LayoutRow], tuple[int, ...]]] = {
        "max-free-memory": lambda row: (int(not row.fits), row.total_bytes, *simplest(row)),
        "simplest": lambda row: (int(not row.fits), excess(row), *simplest(row)),
        "max-context": lambda row: (int(not row.fits), -row.max_context, excess(row), *simplest(row)),
        "min-gpus": lambda row: (int(not row.fits), excess(row), replica(row), *simplest(row)),
        "training": lambda row: (int(not row.fits), excess(row), idle(row), replica(row), *simplest(row)),
    }
    return min(rows, key=keys["training" if training and objective == "simplest" else objective])
