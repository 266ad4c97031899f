"""One measured run of a model: parameters, FLOPs, memory and time."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from l4spec.layers.common.modules import LayerModule
from l4spec.progress import StageProgress
from l4spec.runtime.measure.experts import Load, watching_experts
from l4spec.runtime.measure.flops import counting_flops
from l4spec.runtime.measure.memory import tracking_memory
from l4spec.runtime.measure.timing import NUM_TIMED, now
from l4spec.runtime.model import Model
from l4spec.runtime.module_inventory import contents_of, module_bytes

Stage = Literal["weights", "prefill", "decode", "training", "caches", "memory", "time"]
STAGES: tuple[Stage, ...] = ("weights", "prefill", "decode", "training", "caches", "memory", "time")


class TimeUpError(Exception):
    """Raised when the time limit has passed; measurements until then are kept."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """Sizes of a run: `batch` prompts of `prefill` tokens, then `decode` steps; `tiles` image tiles before them.

    `training` adds a forward and backward pass over the prompts; caches are made in each of `cache_lengths`.
    """

    prefill: int
    decode: int
    batch: int = 1
    tiles: int = 0
    training: bool = False
    cache_lengths: Sequence[int] = ()
    seed: int = 0


@dataclass(slots=True)
class RunMeasurement:
    """Measurements of a run; None and missing keys: not measured. FLOPs are by node id, times are medians."""

    done: list[Stage] = field(default_factory=list)
    params_by_part: dict[str, int] = field(default_factory=dict)
    weight_bytes: int | None = None
    prefill_flops: Counter[str] = field(default_factory=Counter)
    decode_flops: Counter[str] = field(default_factory=Counter)
    """Of the last decode step, whose token is the last of prefill + decode."""
    training_flops: Counter[str] = field(default_factory=Counter)
    cache_bytes: dict[int, int] = field(default_factory=dict)
    activation_bytes: int | None = None
    """Most memory of a prefill beyond weights, caches and token ids."""
    expert_load: Load = field(default_factory=dict)
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    """Of one step, without the first."""
    threads: int = 0
    """Of torch's, that computed on the CPU."""


def measure_run(
    model: Model,
    sample: RunShape,
    *,
    stages: Sequence[Stage] = STAGES,
    time_limit: float | None = None,
    progress: StageProgress = lambda stage: None,
) -> RunMeasurement:
    """Run `model` with the sizes of `sample` and measure each stage; stop after `time_limit` seconds.

    `progress` is called with the name of each stage as it begins.
    """
    measurement = RunMeasurement(threads=torch.get_num_threads())
    measuring: dict[Stage, Callable[[], None]] = {
        "weights": lambda: _weights(model, measurement),
        "prefill": lambda: _prefill(model, sample, measurement),
        "decode": lambda: _decode(model, sample, measurement),
        "training": lambda: _training(model, sample, measurement),
        "caches": lambda: _caches(model, sample, measurement),
        "memory": lambda: _memory(model, sample, measurement),
        "time": lambda: _time(model, sample, measurement),
    }
    try:
        with _stopping(model, time_limit):
            for name in stages:
                progress(name)
                measuring[name]()
                measurement.done.append(name)
    except TimeUpError:
        pass
    return measurement


@contextmanager
def _stopping(model: Model, time_limit: float | None) -> Iterator[None]:
    """Raise TimeUpError before the first layer that would run after the limit."""
    if time_limit is None:
        yield
        return
    end = time.perf_counter() + time_limit

    def look(*_: Any) -> None:
        if time.perf_counter() > end:
            raise TimeUpError

    layers = [module for module in model.modules() if isinstance(module, LayerModule)]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weights(model: Model, measurement: RunMeasurement) -> None:
    measurement.params_by_part = contents_of(model).by_part
    measurement.weight_bytes = module_bytes(model)


def _inputs(model: Model, sample: RunShape) -> tuple[Tensor, Tensor | None]:
    """Random prompts [batch, prefill] and tiles [tiles, channels, height, width], whose places come first in row 0."""
    generator = torch.Generator().manual_seed(sample.seed)
    vocab_size = model.graph.model.text.embedding.vocab_size
    shape = (sample.batch, sample.prefill)
    if not sample.tiles:
        return torch.randint(vocab_size, shape, generator=generator).to(model.device), None
    vision = model.graph.model.vision
    assert vision is not None, "image tiles need a model with vision"
    if model.image_token_id is None:
        model.image_token_id = vocab_size - 1
    num_places, image = sample.tiles * vision.num_tokens_per_tile, model.image_token_id
    if num_places > sample.prefill * sample.batch:
        raise ValueError(f"{sample.tiles} tiles take {num_places} tokens, found {sample.prefill * sample.batch}")
    ids = torch.randint(max(1, min(image, vocab_size)), shape, generator=generator)
    ids = torch.where(ids == image, 0 if image else 1, ids)
    ids.view(-1)[:num_places] = image
    patches = vision.patch_embedding
    pixels = (sample.tiles, patches.num_channels, patches.image_size, patches.image_size)
    return ids.to(model.device), torch.rand(pixels, generator=generator).to(model.device, model.dtype)


@torch.no_grad()
def prompt_logits(model: Model, sample: RunShape) -> Tensor:
    """The logits of the sample's prompts [batch, prefill, vocab], on the CPU."""
    ids, pixels = _inputs(model, sample)
    logits: Tensor = model(ids, pixel_values=pixels)
    return logits.cpu()


def relative_error(values: Tensor, reference: Tensor) -> float:
    """|found - reference| / |reference|, of the norms over all elements."""
    return float((values - reference).double().norm() / reference.double().norm())


def _prefill(model: Model, sample: RunShape, measurement: RunMeasurement) -> None:
    ids, pixels = _inputs(model, sample)
    with torch.no_grad(), watching_experts(model) as load, counting_flops(model) as flops:
        model(ids, pixel_values=pixels, logits="last")
    measurement.prefill_flops, measurement.expert_load = flops, load


def _decode(model: Model, sample: RunShape, measurement: RunMeasurement) -> None:
    if not sample.decode or not model.graph.can_cache:
        return
    ids, pixels = _inputs(model, sample)
    cache = model.new_cache(sample.batch, sample.prefill + sample.decode)
    model(ids, pixel_values=pixels, cache=cache, logits="last")
    for _ in range(sample.decode - 1):
        model(ids[:, -1:], cache=cache, logits="last")
    with counting_flops(model) as measurement.decode_flops:
        model(ids[:, -1:], cache=cache, logits="last")


def _training(model: Model, sample: RunShape, measurement: RunMeasurement) -> None:
    if not sample.training:
        return
    ids, pixels = _inputs(model, sample)
    with counting_flops(model) as measurement.training_flops:
        logits = model(ids, pixel_values=pixels)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks it
    model.zero_grad(set_to_none=True)


def _caches(model: Model, sample: RunShape, measurement: RunMeasurement) -> None:
    if model.graph.can_cache:
        measurement.cache_bytes = {n: model.new_cache(sample.batch, n).num_bytes for n in sample.cache_lengths}


def _memory(model: Model, sample: RunShape, measurement: RunMeasurement) -> None:
    """Of a prefill into a cache, or without one where nothing can be cached."""
    ids, pixels = _inputs(model, sample)
    cache = model.new_cache(sample.batch, sample.prefill) if model.graph.can_cache else None
    with torch.no_grad(), tracking_memory(model.device) as memory:
        result = model(ids, pixel_values=pixels, cache=cache, logits="last")
    measurement.activation_bytes = memory.peak_bytes
    del result


def _time(model: Model, sample: RunShape, measurement: RunMeasurement) -> None:
    ids, pixels = _inputs(model, sample)
    cache = model.new_cache(sample.batch, sample.prefill + sample.decode) if model.graph.can_cache else None
    prefills, steps = [], []
    for turn in range(NUM_TIMED + 1):
        if cache is not None:
            cache.reset()
        start = now(model.device)
        with torch.no_grad():
            model(ids, pixel_values=pixels, cache=cache, logits="last")
        prefills.append(now(model.device) - start)
        for _ in range(sample.decode if cache is not None and not turn else 0):
            start = now(model.device)
            model(ids[:, -1:], cache=cache, logits="last")
            steps.append(now(model.device) - start)
    measurement.prefill_seconds = median(prefills[1:])
    measurement.decode_seconds = median(steps[1:]) if len(steps) > 1 else None
