"""Suggestions for a plan that does not fit: the nearest changes, each verified by planning it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from l4spec.errors import UserError
from l4spec.graph.kept import kept_with
from l4spec.sharding.layout import Layout
from planners.catalog.cluster import MAX_GPUS, Cluster
from planners.counts.kv_cache import KV_DTYPE_BYTES
from planners.counts.weights import expert_bytes, weigh
from planners.deployment import Deployment
from planners.device.memory import Placement, Setting, budget_of, place
from planners.plan_types import Suggestion
from planners.search.layouts import fits, largest, layouts_to_try, max_batch, max_context, ruled_out, undivided

_SMALLER_SCHEMES = ("fp8", "int4-mixed", "w4a16")
_FROZEN_SCHEMES = ("bnb-nf4",)
"""Of a model under adapters."""
_MOST_GPUS_FACTOR = 64
_HOST_MEMORY = ("16GB", "32GB", "64GB", "128GB", "256GB", "512GB", "1TB", "2TB")
_DIVIDED_AMONG = (2, 4, 8, 16, 32, 64)
_AS_ASKED: Mapping[str, None] = {}


class _Change(NamedTuple):
    """A changed deployment; `what` describes the change."""

    what: str
    deployment: Deployment

    @property
    def cluster(self) -> Cluster:
        """The GPUs of the changed deployment."""
        assert self.deployment.cluster is not None, "only clusters can be too small"
        return self.deployment.cluster

    def then(self, what: str, **options: Any) -> "_Change":
        """This change and another one. Raises UserError where that cannot be planned."""
        both = f"{self.what}, {what}" if self.what else what
        return _Change(both, self.deployment.changed(**options))


def suggest(deployment: Deployment) -> tuple[Suggestion, ...]:
    """Changes after which the plan fits, each with the complete options that plan it.

    First changes that keep the workload and the GPUs: one smaller format, or two if one is not enough; in training
    leaner states, or sequences divided among GPUs; memory of the host beside one GPU. Then less work, then more GPUs;
    where no format was enough, both again together with the smallest one.
    """
    asked, training = _as_asked(deployment), deployment.setting.train is not None
    single = _fitting(_leaner_training(asked) if training else _smaller_formats(asked))
    double = () if single else _fitting(_divided(asked) if training else _smaller_both(asked))
    more = tuple(_more_gpus(asked))
    alone = (*single, *double, *_fitting(_beside_host(asked)), *_fitting(_less_work(asked)), *_fitting(iter(more)))
    if single or double:
        return alone
    enough = min((change.cluster.num_gpus for change in more), default=MAX_GPUS)
    return (*alone, *_fitting(_with_smallest(asked, enough)))


def _as_asked(deployment: Deployment) -> _Change:
    """The deployment with the context written out, where a default would be guessed again for every change."""
    if deployment.request.prompt_tokens is None and deployment.request.max_context is None:
        return _Change("", deployment.changed(context=deployment.context))
    return _Change("", deployment)


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
    fitting = [
        placement for placement in _placements(deployment, change.cluster.num_gpus) if fits(deployment, placement)
    ]
    if not fitting:
        return None
    best = min(fitting, key=lambda placement: placement.tightest(context, batch).total)
    return Suggestion(
        change=change.what,
        command=deployment.request.command_line(),
        total_bytes=best.tightest(context, batch).total,
        max_context=max_context(best, batch),
    )


def _holds(asked: _Change, num_gpus: int, options: dict[str, None]) -> bool:
    """True if some layout of `num_gpus` GPUs has room for the request; tries those with most shards first."""
    deployment = asked.deployment
    return any(fits(deployment, placement) for placement in _placements(deployment, num_gpus, options))


def _placements(deployment: Deployment, num_gpus: int, options: Mapping[str, None] = _AS_ASKED) -> Iterator[Placement]:
    """Every legal layout of so many GPUs that could hold the weights; `options` are degrees that are given up.

    Placements one by one, those with most shards first, so that a search for one that fits ends early.
    """
    request, setting, context = deployment.request, deployment.setting, deployment.context
    fixed = {axis: getattr(request, axis) for axis in ("tp", "ep", "pp", "dp")} | dict(options)
    for layout in _legal(setting, num_gpus, (*fixed.values(), request.cp or 1)):
        placement = _placed(setting, layout)
        if placement is not None and undivided(setting, layout, context, deployment.batch) is None:
            yield placement


@kept_with(lambda setting: setting.graph, maxsize=1024)
def _placed(setting: Setting, layout: Layout) -> Placement | None:
    """The placement, or None if the scheme cannot pack a shard."""
    try:
        return place(setting, layout)
    except UserError:
        return None


@kept_with(lambda setting: setting.graph, maxsize=1024)
def _legal(setting: Setting, num_gpus: int, degrees: tuple[int | None, ...]) -> tuple[Layout, ...]:
    """Every layout with these degrees that the model's axes allow and that could hold the weights, by shards."""
    axes = tuple(zip(("tp", "ep", "pp", "dp", "cp"), degrees, strict=True))
    least, most = _least_weights(setting), dict[int, int]()
    promising = []
    for layout in layouts_to_try(setting.graph, num_gpus, degrees[-1] or 1):
        if layout.tp not in most:
            most[layout.tp] = _most_weights(setting, layout.tp)
        if least(layout) <= most[layout.tp] and all(degree in (None, getattr(layout, axis)) for axis, degree in axes):
            promising.append(layout)
    legal = [layout for layout in promising if ruled_out(setting, layout) is None]
    return tuple(sorted(legal, key=lambda layout: (-_most_shards(setting, layout), layout.pp)))


def _least_weights(setting: Setting) -> Callable[[Layout], float]:
    """Bytes of weights that some device of a layout has at least: the mean over the devices that may share them."""
    weights = weigh(setting.graph, setting.scheme).bytes
    if setting.train is not None or setting.host is not None:
        left = weights - (setting.host.num_bytes if setting.host else 0)
        return lambda layout: left / _most_shards(setting, layout)
    experts = expert_bytes(setting.graph, setting.scheme)
    return lambda layout: (weights - experts + experts / layout.ep) / (layout.tp * layout.pp)


def _most_weights(setting: Setting, tp: int) -> int:
    budget = budget_of(setting, tp)
    assert budget is not None, "only clusters can be too small"
    return budget.most_weights


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


def _smaller_weights(asked: _Change, schemes: tuple[str, ...] = _SMALLER_SCHEMES) -> Iterator[_Change]:
    setting = asked.deployment.setting
    weights = weigh(setting.graph, setting.scheme).bytes
    for name in schemes:
        try:
            change = asked.then(f"{name} weights", quantization=name)
            smaller = weigh(setting.graph, change.deployment.setting.scheme).bytes < weights
        except UserError:  # this scheme cannot pack this model
            continue
        if smaller:
            yield change


def _beside_host(asked: _Change) -> Iterator[_Change]:
    """The least usual size of host memory with which one GPU is enough."""
    deployment = asked.deployment
    is_possible = asked.cluster.num_gpus == 1 and asked.cluster.hardware.links.host_memory is not None
    if not is_possible or deployment.setting.train is not None or deployment.setting.host is not None:
        return
    for size in _HOST_MEMORY:
        change = asked.then(f"{size} of host memory beside the GPU", host_memory=size)
        if any(fits(change.deployment, placement) for placement in _placements(change.deployment, 1)):
            yield change
            return


def _leaner_training(asked: _Change) -> Iterator[_Change]:
    request = asked.deployment.request
    leaner: tuple[tuple[str, dict[str, Any]], ...] = (
        ("full activation checkpointing", {"checkpointing": "full"}),
        ("optimizer states, gradients and weights sharded (ZeRO 3)", {"zero_stage": 3}),
        ("ZeRO 3 and full activation checkpointing", {"zero_stage": 3, "checkpointing": "full"}),
    )
    for what, options in leaner:
        if any(getattr(request, name) not in (None, value) for name, value in options.items()):
            yield asked.then(what, **options)
    if request.lora_rank is not None:
        yield from _smaller_weights(asked, _FROZEN_SCHEMES)


def _divided(asked: _Change) -> Iterator[_Change]:
    """The least degree, a power of two, by which sequences divided among GPUs fit in training."""
    if asked.deployment.request.cp is None:
        for cp in _DIVIDED_AMONG:
            change = asked.then(f"sequences divided among {cp} GPUs (context parallelism)", cp=cp)
            if asked.cluster.num_gpus % cp == 0 and _holds(change, change.cluster.num_gpus, {}):
                yield change
                return


def _less_work(asked: _Change) -> Iterator[_Change]:
    """The longest context at this batch, and the largest batch at this context."""
    deployment, placements = asked.deployment, [*_placements(asked.deployment, asked.cluster.num_gpus)]
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
    longest = max((largest(lambda n, p=placement: p.room(n, 1), limit) for placement in roomy), default=0)  # type: ignore[misc]
    if deployment.context <= longest < limit:
        yield asked.then(f"sequences of at most {longest:,} tokens", max_context=longest)


def _more_gpus(asked: _Change) -> Iterator[_Change]:
    """The least number that fits, in steps of an eighth; fixed degrees are given up where they forbid it."""
    free = {name: None for name in ("tp", "ep", "pp", "dp") if getattr(asked.deployment.request, name) is not None}
    for options in ({}, free) if free else ({},):
        factor, now = 2, asked.cluster.num_gpus
        while factor <= _MOST_GPUS_FACTOR and (count := now * factor) <= MAX_GPUS:
            if _holds(asked, count, options):
                step = max(1, count // 8)
                fewer = (n for n in range(count // 2 + step, count, step) if _holds(asked, n, options))
                yield _with_gpus(asked, next(fewer, count), options)
                return
            factor *= 2


def _with_gpus(asked: _Change, count: int, options: dict[str, None]) -> _Change:
    return asked.then(f"{count} GPUs instead of {asked.cluster.num_gpus}", num_gpus=count, **options)
