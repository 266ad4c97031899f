"""What would make a plan fit that does not: the nearest changes, each found by planning it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from l4spec.errors import UserError
from planners.catalog import quantization as quantization_of
from planners.cluster import Cluster
from planners.kv_cache import KV_DTYPE_BYTES
from planners.memory import Setting, fullest_device
from planners.plan_types import Layout, Suggestion
from planners.search import Pinned, fits, layouts_for, max_context
from planners.weights import scheme_of, weigh

_SMALLER_SCHEMES = ("fp8", "w4a16")
_MOST_GPUS_FACTOR = 64


@dataclass(frozen=True, slots=True)
class _Change:
    what: str
    option: str
    setting: Setting
    num_gpus: int
    context: int


def suggest(setting: Setting, cluster: Cluster, context: int, batch: int, pinned: Pinned) -> tuple[Suggestion, ...]:
    """Changes of one thing at a time after which the plan fits: cache dtype, quantization, context, more GPUs."""
    found = []
    for change in _changes(setting, cluster, context, batch, pinned):
        layout = _fitting_layout(change, batch, pinned)
        if layout is not None:
            found.append(
                Suggestion(
                    change=change.what,
                    command=change.option,
                    total_bytes=fullest_device(change.setting, layout, change.context, batch).total,
                    max_context=max_context(change.setting, layout, batch),
                )
            )
    return tuple(found)


def _changes(setting: Setting, cluster: Cluster, context: int, batch: int, pinned: Pinned) -> Iterator[_Change]:
    gpus = cluster.num_gpus
    if setting.train is None and setting.kv_dtype_bytes > KV_DTYPE_BYTES["fp8"]:
        smaller = replace(setting, kv_dtype_bytes=KV_DTYPE_BYTES["fp8"])
        yield _Change("KV cache in fp8", "--kv-dtype fp8", smaller, gpus, context)
    if setting.train is None:
        yield from _smaller_weights(setting, gpus, context)
    legal, _ = layouts_for(setting, gpus, pinned)
    longest = max((max_context(setting, layout, batch) for layout in legal), default=0)
    if 0 < longest < context:
        yield _Change(f"context of {longest:,} tokens", f"--context {longest}", setting, gpus, longest)
    yield from _more_gpus(setting, cluster, context, batch, pinned)


def _smaller_weights(setting: Setting, gpus: int, context: int) -> Iterator[_Change]:
    weights = weigh(setting.graph, setting.scheme).bytes
    for name in _SMALLER_SCHEMES:
        scheme = scheme_of(quantization_of(name))
        try:
            smaller = weigh(setting.graph, scheme).bytes < weights
        except UserError:  # this scheme cannot pack this model
            continue
        if smaller:
            yield _Change(f"{name} weights", f"--quantization {name}", replace(setting, scheme=scheme), gpus, context)


def _more_gpus(setting: Setting, cluster: Cluster, context: int, batch: int, pinned: Pinned) -> Iterator[_Change]:
    """The smallest of twice, four times … as many GPUs that fits."""
    factor = 2
    while factor <= _MOST_GPUS_FACTOR:
        count = cluster.num_gpus * factor
        change = _Change(
            f"{count} GPUs instead of {cluster.num_gpus}",
            f"--gpus {count}x{cluster.hardware.name}",
            setting,
            count,
            context,
        )
        if _fitting_layout(change, batch, pinned) is not None:
            yield change
            return
        factor *= 2


def _fitting_layout(change: _Change, batch: int, pinned: Pinned) -> Layout | None:
    """A layout of the change's GPUs that fits, the one with the least on its fullest device; fixed degrees may only move
    where the number of GPUs changed."""
    legal, _ = layouts_for(change.setting, change.num_gpus, pinned)
    fitting = [layout for layout in legal if fits(change.setting, layout, change.context, batch)]
    return min(
        fitting, key=lambda layout: fullest_device(change.setting, layout, change.context, batch).total, default=None
    )
