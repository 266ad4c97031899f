"""What would make a plan fit that does not: the nearest changes, each found by planning it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from l4spec.errors import UserError
from l4spec.sharding.layout import Layout
from planners.catalog import quantization as quantization_of
from planners.catalog.cluster import MAX_GPUS, Cluster
from planners.counts.kv_cache import KV_DTYPE_BYTES
from planners.counts.weights import scheme_of, weigh
from planners.device.memory import Placement, Setting, place
from planners.plan_types import Suggestion
from planners.request import Request
from planners.search.layouts import layouts_to_try, max_batch, max_context, why_not

_SMALLER_SCHEMES = ("fp8", "int4-mixed", "w4a16")
_MOST_GPUS_FACTOR = 64


@dataclass(frozen=True, slots=True)
class _Change:
    """A changed request with its setting; `what` says the change to a person."""

    what: str
    request: Request
    setting: Setting
    num_gpus: int

    def and_also(self, what: str) -> str:
        """This change and another one, in words."""
        return f"{self.what}, {what}" if self.what else what


def suggest(setting: Setting, cluster: Cluster, request: Request) -> tuple[Suggestion, ...]:
    """Changes after which the plan fits, each with the complete options that plan it.

    First what keeps the work and the GPUs: one smaller format, or where none is enough two. Then less work, then more
    GPUs; where no format was enough, both again together with the smallest one.
    """
    asked = _Change("", replace(request, context=request.tokens(setting.graph)), setting, cluster.num_gpus)
    single = _fitting(_leaner_training(asked) if setting.train else _smaller_formats(asked))
    double = () if single or setting.train else _fitting(_smaller_both(asked))
    more = tuple(_more_gpus(asked, cluster))
    alone = (*single, *double, *_fitting(_less_work(asked)), *_fitting(iter(more)))
    if single or double:
        return alone
    enough = min((change.num_gpus for change in more), default=MAX_GPUS)
    return (*alone, *_fitting(_with_smallest(asked, cluster, enough)))


def _with_smallest(asked: _Change, cluster: Cluster, enough: int) -> Iterator[_Change]:
    """The leanest way to train, or the smallest weights, with less work, and with fewer more GPUs than are `enough`."""
    leaner = [*(_leaner_training(asked) if asked.setting.train else _smaller_weights(asked))]
    if leaner:
        yield from _less_work(leaner[-1])
        yield from (change for change in _more_gpus(leaner[-1], cluster) if change.num_gpus < enough)


def _fitting(changes: Iterator[_Change]) -> tuple[Suggestion, ...]:
    return tuple(found for change in changes if (found := _checked(change)))


def _checked(change: _Change) -> Suggestion | None:
    """The suggestion of a change that fits somewhere, on the layout with the least on its fullest device."""
    context, batch = change.request.context or 1, change.request.batch
    fitting = [placement for placement in _placements(change) if placement.fits(context, batch)]
    if not fitting:
        return None
    best = min(fitting, key=lambda placement: placement.tightest(context, batch).total)
    return Suggestion(
        change=change.what,
        command=change.request.options(),
        total_bytes=best.tightest(context, batch).total,
        max_context=max_context(best, batch),
    )


def _placements(change: _Change) -> list[Placement]:
    """Every legal layout that could hold the weights; the others are not worth working out."""
    setting, pinned, context = change.setting, change.request.pinned, change.request.context or 1
    assert setting.hardware is not None, "only clusters can be too small"
    weights, usable = weigh(setting.graph, setting.scheme).bytes, setting.hardware.usable.num_bytes
    promising = [
        layout
        for layout in layouts_to_try(setting.graph, change.num_gpus, pinned.cp)
        if pinned.allows(layout) and weights <= usable * _most_shards(setting, layout)
    ]
    return [place(setting, layout) for layout in promising if why_not(setting, layout, context) is None]


def _most_shards(setting: Setting, layout: Layout) -> int:
    """Devices that may share the weights: those of a replica, or in training all of them (ZeRO 3)."""
    return layout.num_devices if setting.train else layout.tp * layout.ep * layout.pp


def _smaller_formats(asked: _Change) -> Iterator[_Change]:
    yield from _smaller_cache(asked)
    yield from _smaller_weights(asked)


def _smaller_both(asked: _Change) -> Iterator[_Change]:
    for change in _smaller_cache(asked):
        yield from _smaller_weights(change)


def _smaller_cache(asked: _Change) -> Iterator[_Change]:
    size = KV_DTYPE_BYTES["fp8"]
    if asked.setting.kv_dtype_bytes > size:
        setting = replace(asked.setting, kv_dtype_bytes=size)
        yield _Change("KV cache in fp8", replace(asked.request, kv_dtype="fp8"), setting, asked.num_gpus)


def _smaller_weights(asked: _Change) -> Iterator[_Change]:
    graph = asked.setting.graph
    weights = weigh(graph, asked.setting.scheme).bytes
    for name in _SMALLER_SCHEMES:
        scheme = scheme_of(quantization_of(name))
        try:
            smaller = weigh(graph, scheme).bytes < weights
        except UserError:  # this scheme cannot pack this model
            continue
        if smaller:
            request = replace(asked.request, quantization=name)
            setting = replace(asked.setting, scheme=scheme)
            yield _Change(asked.and_also(f"{name} weights"), request, setting, asked.num_gpus)


def _leaner_training(asked: _Change) -> Iterator[_Change]:
    train = asked.request.train
    for what, leaner in (
        ("full activation checkpointing", replace(train, checkpointing="full")),
        ("optimizer states, gradients and weights sharded (ZeRO 3)", replace(train, zero_stage=3)),
        ("ZeRO 3 and full activation checkpointing", replace(train, zero_stage=3, checkpointing="full")),
    ):
        if leaner != train:
            request = replace(asked.request, train=leaner)
            yield _Change(what, request, replace(asked.setting, train=leaner), asked.num_gpus)


def _less_work(asked: _Change) -> Iterator[_Change]:
    """The longest context at this batch, and the largest batch at this context."""
    request, placements = asked.request, _placements(asked)
    context, batch = request.context or 1, request.batch
    longest = max((max_context(placement, batch) for placement in placements), default=0)
    if 0 < longest < context:
        shorter = replace(request, context=longest)
        yield _Change(asked.and_also(f"context of {longest:,} tokens"), shorter, asked.setting, asked.num_gpus)
    most = max((max_batch(placement, context) for placement in placements), default=0)
    if 0 < most < batch:
        yield _Change(asked.and_also(f"batch of {most:,}"), replace(request, batch=most), asked.setting, asked.num_gpus)


def _more_gpus(asked: _Change, cluster: Cluster) -> Iterator[_Change]:
    """The least number that fits, in steps of an eighth; fixed degrees are given up where they forbid it."""
    free = replace(asked.request, tp=None, ep=None, pp=None, dp=None)
    for base in dict.fromkeys((asked.request, free)):
        factor = 2
        while factor <= _MOST_GPUS_FACTOR and (count := cluster.num_gpus * factor) <= MAX_GPUS:
            if _checked(_with_gpus(asked, base, cluster, count)) is not None:
                step = max(1, count // 8)
                fewer = (_with_gpus(asked, base, cluster, n) for n in range(count // 2 + step, count, step))
                fitting = (change for change in fewer if _checked(change) is not None)
                yield next(fitting, _with_gpus(asked, base, cluster, count))
                return
            factor *= 2


def _with_gpus(asked: _Change, base: Request, cluster: Cluster, count: int) -> _Change:
    request = replace(base, gpus=f"{count}x{cluster.written}")
    what = asked.and_also(f"{count} GPUs instead of {cluster.num_gpus}")
    return _Change(what, request, asked.setting, count)
