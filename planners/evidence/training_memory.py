"""Published peaks of training memory as predictions, by the laws of `planners.device.trainer_memory`."""

import re
from dataclasses import replace

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.sharding.layout import Layout
from l4spec.units import GiB, ceil_div
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.trainer_memory import TrainerMemory, trainer_memory
from planners.device.training_state import TrainingState, TrainSetting, stage_state
from planners.evidence.deployments import graph_of, model_of
from planners.evidence.litgpt_memory import litgpt_bytes
from planners.evidence.rows import Row
from planners.evidence.training_replay import cut_of

METRICS = ("train_peak_memory", "train_peak_allocated", "train_memory_allocated")
_EAGER_LOSS = 14
"""Bytes an entry of logits where the loss is not compiled: bf16 logits, fp32 ones, their logarithms, one gradient."""
_CHECKPOINTING: tuple[tuple[str, Checkpointing], ...] = (
    ("selective AC", "selective"),
    ("full AC", "full"),
    ("AC none", "none"),
)


def predict_training_memory(row: Row) -> float | str:
    """GiB or GB on the fullest device, as the row has them, or why there is no prediction."""
    graph = _graph(row)
    if isinstance(graph, str):
        return graph
    unit = 10**9 if row.unit == "GB" else GiB
    if row.source.startswith("Lightning-AI/litgpt"):
        peak = litgpt_bytes(row, graph)
        return peak if isinstance(peak, str) else peak / unit
    train = _setting(row)
    if isinstance(train, str):
        return train
    batch, length = row.number("batch_or_concurrency"), row.number("isl")
    if batch is None or length is None:
        return "batch or lengths are not published in the row"
    tp, pp, ep, dp = (row.number(name) or 1 for name in ("tp", "pp", "ep", "dp"))
    layout = Layout(tp=tp, pp=pp, ep=ep, dp=max(1, dp // ep), cp=row.noted(r"CP (\d+)", 1))
    law = _law(row, train)
    placed = stages(graph, scheme_of(quantization("bf16")), tp, ep, pp, train.virtual_stages)
    tokens, sequences = ceil_div(length, layout.cp), max(1, batch // dp)
    states = (stage_state(graph, train, layout, stage, law).with_batch(tokens, sequences) for stage in placed)
    idle = row.metric == "train_memory_allocated"
    return max(_bytes(state, idle=idle) for state in states) / unit


def _bytes(state: TrainingState, *, idle: bool) -> int:
    """Bytes at the peak, or between steps."""
    kept = state.weights + state.gradients + state.optimizer
    return kept if idle else kept + state.activations + state.gathered


def _graph(row: Row) -> LayerGraph | str:
    name = model_of(row)
    if name is None:
        return "model is not in the catalogue"
    return graph_of(name, cut_of(row, name))


def _setting(row: Row) -> TrainSetting | str:
    """Settings of the row; Megatron's runs that name no checkpointing have none, and NVIDIA's bf16 gradients."""
    trainer = "torchtitan" if row.source.startswith("pytorch/") else "megatron"
    named = next((kind for text, kind in _CHECKPOINTING if text in row.notes), None)
    if named is None and trainer == "torchtitan":
        return "activation checkpointing is not published in the row"
    return TrainSetting(
        zero_stage=3 if trainer == "torchtitan" else 1,
        checkpointing=named or "none",
        gradient_bytes=2 if row.source.startswith("NVIDIA") else 4,
        micro_batch=row.noted(r"(?:MBS|micro-batches of|local batch) (\d+)", 1),
        trainer=trainer,
        virtual_stages=row.noted(r"VP (\d+)", 1),
    )


def _law(row: Row, train: TrainSetting) -> TrainerMemory:
    """The trainer's law; torchtitan did not compile the loss in 2024, nor blocks where its row does not say so."""
    law = trainer_memory(train.trainer)
    if "202412" not in row.source:
        return law
    eager = replace(law, logit_bytes=_EAGER_LOSS)
    return eager if re.search("compile", row.notes) else replace(eager, unsaved=frozenset())
