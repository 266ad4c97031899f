"""Published training steps as predictions."""

import re

from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.counts.flops import model_flops
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import TrainSetting
from planners.evidence.deployments import graph_of, hardware_of, machine_of, model_of
from planners.evidence.rows import Row
from planners.timing.efficiency import TrainingEfficiency, training_efficiency
from planners.timing.training_report import with_the_rest
from planners.timing.training_step import TrainLoad, TrainModel

METRICS = (
    "step_time",
    "step_time_ms",
    "tokens_per_s_per_gpu",
    "tokens_per_s_total",
    "tokens_per_s_total_or_per_gpu",
    "model_tflops_per_gpu",
    "mfu",
)
_CUT = {
    "cut to 2 layers": ("text.layers=[{attention: local, ffn: moe, repeat: 2}]", "vision=null"),
}
_BLOCK = "{attention: attention, ffn: %s, repeat: %d}"
_ONE_DENSE = f"text.layers=[{_BLOCK % ('dense', 1)}, {_BLOCK}]"
"""SimuMax's cuts of DeepSeek models, which its page does not describe: peaks of DeepSeek-V3 with four layers (marked
calibrate) are met by one dense block alone."""
_SCHEMES = {"bf16": "bf16", "fp8": "fp8", "fp8-cs": "fp8", "mxfp8": "fp8", "nvfp4": "nvfp4"}


def train_case(row: Row) -> tuple[TrainModel, TrainLoad] | str:
    """The model and the step of a training row, or why it cannot be replayed."""
    name, device = model_of(row), hardware_of(row)
    scheme = _SCHEMES.get(row.precision_weights)
    if name is None or device is None or scheme is None:
        return "model, hardware or number format is not in the catalogue"
    batch, length, gpus = row.number("batch_or_concurrency"), row.number("isl"), row.number("n_gpus")
    if batch is None or length is None or gpus is None or row.number("pp") is None:
        return "global batch or parallel degrees are not published in the row"
    if row.metric not in METRICS:
        return f"{row.metric} is not predicted"
    model = TrainModel(
        graph=graph_of(name, cut_of(row, name)),
        scheme=scheme_of(quantization(scheme)),
        machine=machine_of(device, "HBM2e" in row.hardware),
        efficiency=training_efficiency(device),
    )
    return model, _with_the_rest(row, model, _load(row, batch, length, gpus))


def cut_of(row: Row, name: str) -> tuple[str, ...]:
    """Overrides of the spec `name` where a row's model has fewer layers."""
    if cut := re.search(r"\b(\d+) layers,", row.notes):
        layers = _ONE_DENSE % ("moe", int(cut[1]) - 1)
        return (layers, "text.mtp=null") if name == "deepseek-v3" else (layers,)
    return next((extra for text, extra in _CUT.items() if text in row.model), ())


def _load(row: Row, batch: int, length: int, gpus: int) -> TrainLoad:
    tp, ep = row.number("tp") or 1, row.number("ep") or 1
    mxfp8, trainer, pp = row.precision_weights == "mxfp8", _trainer(row), row.number("pp") or 1
    cp = row.noted(r"CP (\d+)", 1)
    whole = 1 if trainer == "megatron" else max(1, batch * tp * pp * cp // gpus)  # FSDP's default: no accumulation
    return TrainLoad(
        sequences=batch,
        length=length,
        num_devices=gpus,
        tp=tp,
        pp=pp,
        ep=ep,
        cp=cp,
        ep_span=ep * row.noted(r"ETP (\d+)", 1),
        micro_batch=row.noted(r"(?:MBS|micro-batches of|local batch|per-device batch) (\d+)", whole),
        virtual_stages=row.noted(r"VP (\d+)", 1),
        checkpointing=_checkpointing(row),
        sequence_parallel="seq-par" in row.notes,
        async_tp=bool(re.search("async ?TP", row.notes, re.IGNORECASE)),
        frozen_weights="LoRA" in row.model,
        trainer=trainer,
        matmul_format="mxfp8" if mxfp8 else None,
    )


def _checkpointing(row: Row) -> Checkpointing:
    """As the row has it; torchtitan's runs with asynchronous tensor parallelism have that of the row above them."""
    if re.search(r"full (AC|recompute)|^same \+|^bf16 async TP$", row.notes):
        return "full"
    return "selective" if re.search("selective (AC|recompute)|SAC", row.notes) else "none"


def _with_the_rest(row: Row, model: TrainModel, load: TrainLoad) -> TrainLoad:
    """The step with what follows its passes: sharded optimizers, FSDP where the trainer is torchtitan or MaxText."""
    if load.frozen_weights:
        return load  # adapters alone are updated
    copies = load.num_devices // (load.tp * load.pp)
    ep = min(load.ep, copies)  # the rest of ep is over the ranks of tp
    layout = Layout(tp=load.tp, pp=load.pp, ep=ep, dp=max(1, copies // (ep * load.cp)), cp=load.cp)
    train = TrainSetting(
        zero_stage=1 if load.trainer == "megatron" else 3,
        checkpointing=load.checkpointing,
        gradient_bytes=2 if row.source.startswith("NVIDIA") else 4,
        micro_batch=load.micro_batch,
        trainer=load.trainer,
        virtual_stages=load.virtual_stages,
    )
    placed = stages(model.graph, scheme_of(quantization("bf16")), layout.tp, layout.ep, layout.pp, train.virtual_stages)
    return with_the_rest(load, model, train, layout, placed)


def _trainer(row: Row) -> str:
    if "MaxText" in row.model:
        return "maxtext"
    return "torchtitan" if row.source.startswith("pytorch/") else "megatron"


def predict_training(row: Row) -> tuple[float, float] | str:
    """(estimate, bound) of a training row in its unit, or why there is none. A bound on a rate is its maximum."""
    case = train_case(row)
    if isinstance(case, str):
        return case
    model, load = case
    time = model.time(load)
    if time.estimate_seconds is None:
        return f"no factors are fitted for {row.precision_weights} on {model.machine.hardware.name}"
    return in_unit(row, model, load, time.estimate_seconds), in_unit(row, model, load, time.bound_seconds)


def in_unit(row: Row, model: TrainModel, load: TrainLoad, seconds: float) -> float:
    """A step's time as the row's metric."""
    tokens = load.sequences * load.length
    per_gpu = tokens / seconds / load.num_devices
    if row.metric in ("step_time", "step_time_ms"):
        return seconds * (1e3 if row.metric.endswith("ms") else 1.0)
    if row.metric == "tokens_per_s_total":
        return tokens / seconds
    if row.metric.startswith("tokens_per_s"):
        return per_gpu
    rate = flops_of_step(model, load) / seconds / load.num_devices
    if row.metric == "model_tflops_per_gpu":
        return rate / 1e12
    return 100 * rate / (model.machine.peak(model.scheme.table.compute_dtype) or 1.0)


def flops_of_step(model: TrainModel, load: TrainLoad) -> float:
    """`model_flops` of the step: forward and backward without recomputation; frozen weights save a third."""
    one = model_flops(model.graph, Work(1, load.length, phase="train"))
    return float(one * load.sequences * (2 if load.frozen_weights else 3))


def refit(case: tuple[TrainModel, TrainLoad], efficiency: TrainingEfficiency) -> tuple[TrainModel, TrainLoad]:
    """The same step with other factors."""
    model, load = case
    return TrainModel(model.graph, model.scheme, model.machine, efficiency), load
