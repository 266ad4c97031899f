"""What to change when a plan does not fit: the nearest changes, each found by planning it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from l4spec.errors import UserError
from l4spec.sharding.layout import Layout
from planners.catalog.cluster import MAX_GPUS, Cluster
from planners.counts.kv_cache import KV_DTYPE_BYTES
from planners.counts.weights import weigh
from planners.deployment import Deployment
from planners.device.memory import Placement, Setting, place
from planners.plan_types import Suggestion
from planners.search.layouts import fits, largest, layouts_to_try, max_batch, max_context, why_not

_SMALLER_SCHEMES = ("fp8", "int4-mixed", "w4a16")
_MOST_GPUS_FACTOR = 64


@dataclass(frozen=True, slots=True)
class _Change:
    """A changed deployment; `what` says the change to a person."""

    what: str
    deployment: Deployment

    @property
    def cluster(self) -> Cluster:
        """The GPUs of the changed deployment."""
        assert self.deployment.cluster is not None, "only clusters can be too small"
        return self.deployment.cluster

    def then(self, what: str, **options: Any) -> "_Change":
        """This change and another one. Raises UserError where that cannot be planned."""
        request = self.deployment.request.changed(**options)
        both = f"{self.what}, {what}" if self.what else what
        return _Change(both, Deployment.resolve(self.deployment.graph, request))


def suggest(deployment: Deployment) -> tuple[Suggestion, ...]:
    """Changes after which the plan fits, each with the complete options that plan it.

    First what keeps the work and the GPUs: one smaller format, or where none is enough two. Then less work, then more
    GPUs; where no format was enough, both again together with the smallest one.
    """
    asked, training = _as_asked(deployment), deployment.setting.train is not None
    single = _fitting(_leaner_training(asked) if training else _smaller_formats(asked))
    double = () if single or training else _fitting(_smaller_both(asked))
    more = tuple(_more_gpus(asked))
    alone = (*single, *double, *_fitting(_less_work(asked)), *_fitting(iter(more)))
    if single or double:
        return alone
    enough = min((change.cluster.num_gpus for change in more), default=MAX_GPUS)
    return (*alone, *_fitting(_with_smallest(asked, enough)))


def _as_asked(deployment: Deployment) -> _Change:
    """The deployment with the context written out, where a default would be guessed anew for every change."""
    request = deployment.request
    if request.prompt_tokens is None and request.max_context is None:
        request = request.changed(context=deployment.context)
    return _Change("", Deployment.resolve(deployment.graph, request))


def _with_smallest(asked: _Change, enough: int) -> Iterator[_Change]:
    """The leanest way to train, or the smallest weights, with less work, and with fewer more GPUs than are `enough`."""
    leaner = [*(_leaner_training(asked) if asked.deployment.setting.train else _smaller_weights(asked))]
    if leaner:
        yield from _less_work(leaner[-1])
        yield from (change for change in _more_gpus(leaner[-1]) if change.cluster.num_gpus < enough)


def _fitting(changes: Iterator[_Change]) -> tuple[Suggestion, ...]:
    return tuple(suggestion for change in changes if (suggestion := _checked(change)))


def _checked(change: _Change) -> Suggestion | None:
    """The suggestion of a change that fits somewhere, on the layout with the least on its fullest device."""
    deployment = change.deployment
    context, batch = deployment.context, deployment.batch
    fitting = [placement for placement in _placements(change) if fits(deployment, placement)]
    if not fitting:
        return None
    best = min(fitting, key=lambda placement: placement.tightest(context, batch).total)
    return Suggestion(
        change=change.what,
        command=deployment.request.command_line(),
        total_bytes=best.tightest(context, batch).total,
        max_context=max_context(best, batch),
    )


def _fits_somewhere(change: _Change) -> bool:
    """Whether some layout holds the change: asked of the ones with most shards first, until one does."""
    setting = change.deployment.setting
    layouts = sorted(_promising(change), key=lambda layout: -_most_shards(setting, layout))
    return any(fits(change.deployment, placement) for placement in _legal(change, layouts))


def _placements(change: _Change) -> list[Placement]:
    """Every legal layout that could hold the weights."""
    return list(_legal(change, _promising(change)))


def _legal(change: _Change, layouts: list[Layout]) -> Iterator[Placement]:
    setting, context = change.deployment.setting, change.deployment.context
    return (place(setting, layout) for layout in layouts if why_not(setting, layout, context) is None)


def _promising(change: _Change) -> list[Layout]:
    """Layouts that could hold the weights; the others are not worth working out."""
    setting, request = change.deployment.setting, change.deployment.request
    assert setting.hardware is not None, "only clusters can be too small"
    weights, usable = weigh(setting.graph, setting.scheme).bytes, setting.hardware.usable.num_bytes
    return [
        layout
        for layout in layouts_to_try(setting.graph, change.cluster.num_gpus, request.cp or 1)
        if request.allows(layout) and weights <= usable * _most_shards(setting, layout)
    ]


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
    if asked.deployment.setting.kv_dtype_bytes > KV_DTYPE_BYTES["fp8"]:
        yield asked.then("KV cache in fp8", kv_dtype="fp8")


def _smaller_weights(asked: _Change) -> Iterator[_Change]:
    setting = asked.deployment.setting
    weights = weigh(setting.graph, setting.scheme).bytes
    for name in _SMALLER_SCHEMES:
        try:
            change = asked.then(f"{name} weights", quantization=name)
            smaller = weigh(setting.graph, change.deployment.setting.scheme).bytes < weights
        except UserError:  # this scheme cannot pack this model
            continue
        if smaller:
            yield change


def _leaner_training(asked: _Change) -> Iterator[_Change]:
    request = asked.deployment.request
    leaner: tuple[tuple[str, dict[str, Any]], ...] = (
        ("full activation checkpointing", {"checkpointing": "full"}),
        ("optimizer states, gradients and weights sharded (ZeRO 3)", {"zero_stage": 3}),
        ("ZeRO 3 and full activation checkpointing", {"zero_stage": 3, "checkpointing": "full"}),
    )
    for what, options in leaner:
        if any(getattr(request, name) != value for name, value in options.items()):
            yield asked.then(what, **options)


def _less_work(asked: _Change) -> Iterator[_Change]:
    """The longest context at this batch, and the largest batch at this context."""
    deployment, placements = asked.deployment, _placements(asked)
    context, batch = deployment.context, deployment.batch
    longest = max((max_context(placement, batch) for placement in placements), default=0)
    if deployment.request.max_context is not None:
        yield from _lower_limit(asked, placements)
    elif (deployment.output_tokens or 0) < longest < context:
        yield asked.then(f"context of {longest:,} tokens", **_context_options(deployment, longest))
    most = max((max_batch(placement, context) for placement in placements), default=0)
    if 0 < most < batch:
        name = "batch" if deployment.request.concurrency is None else "concurrency"
        yield asked.then(f"batch of {most:,}", **{name: most})


def _context_options(deployment: Deployment, context: int) -> dict[str, int]:
    if deployment.request.prompt_tokens is None:
        return {"context": context}
    return {"prompt_tokens": context - (deployment.output_tokens or 0)}


def _lower_limit(asked: _Change, placements: list[Placement]) -> Iterator[_Change]:
    """A limit of the engine that one sequence fits in, where the batch fits already."""
    deployment, limit = asked.deployment, asked.deployment.request.max_context or 1
    roomy = [placement for placement in placements if placement.fits(deployment.context, deployment.batch)]
    longest = max((largest(lambda n, p=placement: p.fits(n, 1), limit) for placement in roomy), default=0)  # type: ignore[misc]
    if deployment.context <= longest < limit:
        yield asked.then(f"sequences of at most {longest:,} tokens", max_context=longest)


def _more_gpus(asked: _Change) -> Iterator[_Change]:
    """The least number that fits, in steps of an eighth; fixed degrees are given up where they forbid it."""
    free = {name: None for name in ("tp", "ep", "pp", "dp") if getattr(asked.deployment.request, name) is not None}
    for options in ({}, free) if free else ({},):
        factor, now = 2, asked.cluster.num_gpus
        while factor <= _MOST_GPUS_FACTOR and (count := now * factor) <= MAX_GPUS:
            change = _with_gpus(asked, count, options)
            if _fits_somewhere(change):
                step = max(1, count // 8)
                fewer = (_with_gpus(asked, n, options) for n in range(count // 2 + step, count, step))
                yield next((change for change in fewer if _fits_somewhere(change)), change)
                return
            factor *= 2


def _with_gpus(asked: _Change, count: int, options: dict[str, None]) -> _Change:
    what = f"{count} GPUs instead of {asked.cluster.num_gpus}"
    return asked.then(what, gpus=f"{count}x{asked.cluster.written}", **options)
