"""Which layout, how long a context, how many sequences: answers by asking `memory.fits` again and again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from l4spec.errors import UserError
from planners.memory import Setting, fits, fullest_device
from planners.plan_types import IllegalLayout, Layout, LayoutRow, Objective
from planners.sharding import candidate_layouts, illegal_reason, stages

MAX_BATCH = 1 << 20


def largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest n in 0..limit for which `holds(n)`, which must be true up to some point and false behind it."""
    if holds(limit):
        return limit
    low, high = 0, limit  # holds(low) or low is 0; not holds(high)
    probe = 1
    while probe < limit and holds(probe):
        low, probe = probe, probe * 2
    high = min(high, probe)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def max_context(setting: Setting, layout: Layout, batch: int) -> int:
    """Tokens of the longest context, up to the model's max_seq_len, with which `batch` sequences fit; 0 if none does."""
    limit = setting.graph.model.text.stack.width.max_seq_len
    return largest(lambda context: fits(setting, layout, context, batch), limit)


def max_batch(setting: Setting, layout: Layout, context: int) -> int:
    """Most sequences of `context` tokens that fit together; 0 if not even one does."""
    return largest(lambda batch: fits(setting, layout, context, batch), MAX_BATCH)


@dataclass(frozen=True, slots=True)
class Pinned:
    """Degrees that the user fixed; None where the planner may choose."""

    tp: int | None = None
    ep: int | None = None
    pp: int | None = None
    dp: int | None = None

    def allows(self, layout: Layout) -> bool:
        """Whether a layout has the fixed degrees."""
        return all(getattr(self, axis) in (None, getattr(layout, axis)) for axis in ("tp", "ep", "pp", "dp"))

    def alone(self) -> Layout:
        """The layout of the fixed degrees, 1 elsewhere."""
        return Layout(tp=self.tp or 1, ep=self.ep or 1, pp=self.pp or 1, dp=self.dp or 1)


def layouts_for(
    setting: Setting, num_devices: int, pinned: Pinned
) -> tuple[tuple[Layout, ...], tuple[IllegalLayout, ...]]:
    """Legal layouts of exactly `num_devices` devices, and the illegal ones with the reason."""
    legal, illegal = [], []
    for layout in candidate_layouts(num_devices):
        if pinned.allows(layout):
            reason = why_not(setting, layout)
            if reason is None:
                legal.append(layout)
            else:
                illegal.append(IllegalLayout(layout=layout, reason=reason))
    return tuple(legal), tuple(illegal)


def why_not(setting: Setting, layout: Layout) -> str | None:
    """Why a layout cannot be used: the model's axes forbid it, or the scheme cannot pack its shards."""
    reason = illegal_reason(setting.graph, layout)
    if reason is not None:
        return reason
    try:
        stages(setting.graph, setting.scheme, layout.tp, layout.ep, layout.pp)
    except UserError as error:
        return str(error)
    return None


def row_of(setting: Setting, layout: Layout, context: int, batch: int) -> LayoutRow:
    """What a layout gives."""
    return LayoutRow(
        layout=layout,
        fits=fits(setting, layout, context, batch),
        total_bytes=fullest_device(setting, layout, context, batch).total,
        max_context=max_context(setting, layout, batch),
        max_batch=max_batch(setting, layout, context),
    )


def choose(rows: Iterable[LayoutRow], objective: Objective, gpus_per_host: int, *, training: bool) -> LayoutRow:
    """The row that serves the objective best; among equals the simplest one.

    balanced: fits, then no pipeline, no expert parallelism, and tensor parallelism as wide as a host (for training: the
    fewest devices a replica, so that the rest is data parallel). max-context: the longest context. min-gpus: fits with
    the fewest devices a replica.
    """

    def simplest(row: LayoutRow) -> tuple[int, ...]:
        layout = row.layout
        return (int(layout.tp > gpus_per_host), layout.pp, layout.ep, -layout.tp)

    def replica(row: LayoutRow) -> int:
        return row.layout.tp * row.layout.ep * row.layout.pp

    keys: dict[str, Callable[[LayoutRow], tuple[int, ...]]] = {
        "balanced": lambda row: (int(not row.fits), *simplest(row)),
        "max-context": lambda row: (-row.max_context, *simplest(row)),
        "min-gpus": lambda row: (int(not row.fits), replica(row), *simplest(row)),
    }
    return min(rows, key=keys["min-gpus" if training and objective == "balanced" else objective])
