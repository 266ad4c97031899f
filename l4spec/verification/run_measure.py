"""`l4spec.measure`: build a spec, or a miniature of it, run it, and compare its plan with the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.progress import StageProgress
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.quantization.tensors import fitted
from l4spec.runtime.measure.job import MeasureJob, unplaced
from l4spec.sharding.layout import Layout
from l4spec.spec.document import load_document
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import resolve
from l4spec.spec.scale import parse_scale, scale_spec
from l4spec.verification.expected_times import UNKNOWN, expected_times
from l4spec.verification.measure import ITEM_BYTES, MeasureReport, cache_lengths, compare_run
from planners.catalog import engine
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import TrainSetting, stage_state
from planners.module.activation_ledger import activation_bytes

if TYPE_CHECKING:
    from l4spec.runtime.measure.run import RunShape
    from l4spec.runtime.model import Model

DEFAULT_PREFILL = 256
DEFAULT_DECODE = 8


class RunFields(TypedDict, total=False):
    """Sizes of a measured run: `batch` prompts of `prefill` tokens (by default one of 256), then `decode` steps (8).

    `tiles` image tiles come first in the first prompt; `train` adds a forward and backward pass over the prompts;
    `seed` determines weights and tokens. With a `layout` of several ranks, these start in a new process, `batch` counts
    the prompts of all of them (by default one prompt for each of dp x ep), and rows are of each rank.
    """

    prefill: int
    decode: int
    batch: int
    tiles: int
    train: bool
    seed: int
    layout: Layout | None


def measure(
    spec: ModelSpec | str | Path,
    *,
    scale: str | None = None,
    num_layers: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    quantization: str | None = None,
    time_limit: float | None = None,
    progress: StageProgress | None = None,
    **run: Unpack[RunFields],
) -> MeasureReport:
    """Run `spec`, a spec, a path or a shipped name, and compare the run with its plan; `RunFields` has its sizes.

    `scale` and `num_layers` run a miniature. Weights are random in `dtype`, by default the spec's. With a scheme of
    `quantization` they are packed, and the logits compared with those before it where memory allows; with `scale` the
    scheme's groups shrink as the widths do, to the largest that divide them. After `time_limit` seconds of measuring
    the rest of the rows stays empty. `progress` is called with the name of each stage. Raises UserError for
    what cannot be run, for too long a sequence and for more memory than there is, RanksEnded when a rank fails.
    """
    from l4spec.runtime.measure.run import measure_run

    model_spec = spec if isinstance(spec, ModelSpec) else parse_spec(load_document(spec))
    if scale is not None or num_layers is not None:
        model_spec = scale_spec(model_spec, *([parse_scale(scale)] if scale else []), num_layers=num_layers)
    layout = run.pop("layout", None)
    if layout is not None and layout.num_devices > 1:
        from l4spec.verification.run_measure_ranks import measure_in_new_process, require_plain

        require_plain(device, quantization, run.pop("tiles", 0))
        job = _job(layout, dtype, run, progress=progress is not None)
        return measure_in_new_process(model_spec, job, time_limit, progress)
    graph, progress = build_graph(resolve(model_spec)), progress or (lambda stage: None)
    sample = _sample(graph, run)
    table = None if quantization is None else scheme_for(graph, quantization, is_miniature=scale is not None)
    setting = MeasureSetting(model_spec, graph, sample, device, number_format_of(graph, dtype, table), table)
    _check(graph, sample, setting.dtype, table)
    progress("random weights")
    model, logit_error = _built(setting)
    measurement = measure_run(model, sample, time_limit=time_limit, progress=progress)
    expected = UNKNOWN
    if table is None:
        expected = expected_times(graph, sample, device=device, dtype=setting.dtype, threads=measurement.threads)
    conditions = {"device": device, "dtype": setting.dtype}
    return compare_run(
        graph, sample, measurement, **conditions, table=table, logit_error=logit_error, expected=expected
    )


def _job(layout: Layout, dtype: str | None, run: RunFields, *, progress: bool) -> MeasureJob:
    """Measurement job of the ranks of a layout; the caller sets the spec."""
    return MeasureJob(
        "",
        layout,
        dtype=dtype,
        seed=run.get("seed", 0),
        prefill=run.get("prefill", DEFAULT_PREFILL),
        decode=run.get("decode", DEFAULT_DECODE),
        batch=run.get("batch", layout.dp * layout.ep),
        train=run.get("train", False),
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class MeasureSetting:
    """Model of a measurement: weights in `dtype`, packed by `table` if there is one."""

    spec: ModelSpec
    graph: LayerGraph
    sample: "RunShape"
    device: str
    dtype: str
    table: Quantization | None


def scheme_for(graph: LayerGraph, quantization: str, *, is_miniature: bool) -> Quantization:
    """The scheme of this name; for a miniature with groups that divide its widths. Raises UserError."""
    table = scheme_named(quantization)
    return fitted(graph, table) if is_miniature else table


def number_format_of(graph: LayerGraph, dtype: str | None, table: Quantization | None) -> str:
    """The format of plain tensors: the scheme's, else `dtype`, else the spec's. Raises UserError for both at once."""
    from l4spec.runtime.quantize.apply import number_format

    if table is None:
        return dtype or graph.model.text.dtype
    if dtype is not None:
        raise UserError(
            [Problem(f"{table.name} says the number formats of the weights", path="dtype", hint="leave it")]
        )
    return number_format(graph, table)


def _built(setting: MeasureSetting) -> tuple["Model", float | None]:
    """The model to measure, and the change of its logits by quantization if both versions fit."""
    from l4spec.runtime.build import build, build_quantized
    from l4spec.runtime.measure.run import prompt_logits, relative_error
    from l4spec.runtime.memory_check import require_memory
    from l4spec.runtime.quantize.apply import quantize

    graph, sample, table = setting.graph, setting.sample, setting.table
    beside = _beside_weights(graph, sample, setting.dtype)
    try:
        require_memory(setting.spec, graph, setting.device, setting.dtype, beside)
    except UserError:
        if table is None:
            raise
        require_memory(setting.spec, graph, setting.device, setting.dtype, beside, table)
        return build_quantized(graph, table, setting.device, seed=sample.seed), None
    model = build(graph, setting.device, setting.dtype, seed=sample.seed)
    if table is None:
        return model, None
    reference = prompt_logits(model, sample)
    return quantize(model, table), relative_error(prompt_logits(model, sample), reference)


def _sample(graph: LayerGraph, run: RunFields) -> "RunShape":
    from l4spec.runtime.measure.run import RunShape

    prefill, decode = run.get("prefill", DEFAULT_PREFILL), run.get("decode", DEFAULT_DECODE)
    return RunShape(
        prefill=prefill,
        decode=decode,
        batch=run.get("batch", 1),
        tiles=run.get("tiles", 0),
        training=run.get("train", False),
        cache_lengths=cache_lengths(graph, prefill + decode),
        seed=run.get("seed", 0),
    )


def _check(graph: LayerGraph, sample: "RunShape", dtype: str, table: Quantization | None) -> None:
    """Raise UserError for settings that cannot be run."""
    problems = []
    if table is not None and sample.training:
        problems.append(Problem("packed weights do not train", path="train", hint="measure training unquantized"))
    if dtype not in ITEM_BYTES:
        problems.append(Problem(f"expected one of {', '.join(ITEM_BYTES)}, found {dtype}", path="dtype"))
    for name, value, least in (
        ("prefill", sample.prefill, 1),
        ("decode", sample.decode, 0),
        ("batch", sample.batch, 1),
    ):
        if value < least:
            problems.append(Problem(f"expected at least {least}, found {value}", path=name))
    problems.extend(unplaced(graph, sample.prefill + sample.decode, "prefill"))
    problems.extend(_tile_problems(graph, sample))
    if problems:
        raise UserError(problems)


def _tile_problems(graph: LayerGraph, sample: "RunShape") -> list[Problem]:
    if not sample.tiles:
        return []
    if graph.model.vision is None or sample.tiles < 0:
        return [Problem(f"needs a model with vision and at least 0 tiles, found {sample.tiles}", path="tiles")]
    vision, room = graph.model.vision, sample.batch * sample.prefill
    needed = sample.tiles * vision.num_tokens_per_tile
    message = f"{sample.tiles} tiles take {needed} tokens, of which the prompts have {room}"
    return [Problem(message, path="tiles", hint=f"--prefill {needed}")] if needed > room else []


def _beside_weights(graph: LayerGraph, sample: "RunShape", dtype: str) -> int:
    """Bytes that the run takes besides the weights: activations and two caches, and gradients in training."""
    context, item = sample.prefill + sample.decode, ITEM_BYTES[dtype]
    cache = plan_cache(graph, engine("ideal"), dtype=dtype, context=context, batch=sample.batch).bytes
    work = Work(sample.batch, sample.prefill, num_logits=1)
    bytes_needed = 2 * cache + activation_bytes(graph, work, num_tiles=sample.tiles, item_bytes=item)
    if not sample.training:
        return bytes_needed
    train = TrainSetting(checkpointing="none", micro_batch=sample.batch)
    (stage,) = stages(graph, scheme_of(train.matmuls), 1, 1, 1)
    saved = stage_state(graph, train, Layout(), stage).with_batch(sample.prefill, sample.batch).activations
    return bytes_needed + item * count_params(graph).total + saved * item // 2
