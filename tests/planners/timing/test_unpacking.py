"""Steps over packed weights: time of unpacking them, beside what lit-gpt's packed runs took longer."""

import re
from dataclasses import replace
from math import log

import pytest

from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.device.frozen_base import unpacked_of
from planners.evidence.deployments import graph_of, machine_of
from planners.evidence.rows import PUBLISHED, Row, read_rows
from planners.timing.efficiency import training_efficiency
from planners.timing.training_step import TrainLoad, TrainModel, communication_seconds

COPY = 4
"""Bytes of a weight that bitsandbytes 0.41 moved besides: it unpacked to fp16, and copied that to bf16."""
LOAD = TrainLoad(sequences=8, length=1024, num_devices=1, frozen_weights=True)


def model_of(name: str, hardware: str) -> TrainModel:
    efficiency = training_efficiency(hardware.replace("40gb", "80gb"))  # the same cores beside slower memory
    return TrainModel(graph_of(name), scheme_of(quantization("bf16")), machine_of(hardware), efficiency)


def seconds(model: TrainModel, load: TrainLoad) -> float:
    return model.time(load).estimate_seconds or 0.0


def iteration_of(row: Row) -> float:
    """Seconds of one of lit-gpt's iterations."""
    match = re.search(r"([0-9.]+) min per 1k iterations", row.notes)
    assert match is not None
    return float(match[1]) * 60 / 1000


@pytest.mark.parametrize(("size", "name"), [("7B", "llama-2-7b"), ("13B", "llama-2-13b")])
def test_unpacking_takes_about_as_long_as_packed_runs_of_lit_gpt_took_longer(size: str, name: str) -> None:
    """Within two standard errors of the factor of moved bytes (of its logarithm), which no packed run fitted."""
    rows = {
        row.precision_weights: row
        for row in read_rows(PUBLISHED)
        if f"{size} (LoRA r8)" in row.model and row.batch_or_concurrency == "1"
    }
    for published, scheme in (("nf4", "bnb-nf4-fp32"), ("nf4-dq", "bnb-nf4")):
        base = scheme_of(quantization(scheme))
        packed = unpacked_of(graph_of(name), base, Layout(), tuple(range(graph_of(name).num_layers)))
        weights = sum(p.numel for _, p in graph_of(name).parameters() if p.role == "linear")
        load = replace(LOAD, sequences=1, unpacked_bytes=packed.moved + COPY * weights)
        model = model_of(name, "a100-40gb")
        planned = seconds(model, load) - seconds(model, replace(load, unpacked_bytes=0))
        longer = iteration_of(rows[published]) - iteration_of(rows["bf16"])
        print(published, planned, longer)
        assert model.efficiency is not None
        assert abs(log(planned / longer)) < 2 * model.efficiency.standard_errors["moved"], (published, planned, longer)


@pytest.mark.parametrize(("checkpointing", "again"), [("none", 0), ("full", 1)])
def test_weights_are_unpacked_for_every_pass_of_a_micro_batch(checkpointing: Checkpointing, again: int) -> None:
    model, packed = model_of("llama-3.1-8b", "h100-sxm"), 10**9
    for micro_batch in (1, 2, 8):
        load = replace(LOAD, micro_batch=micro_batch, checkpointing=checkpointing)
        bounds = [model.time(replace(load, unpacked_bytes=size)).bound_seconds for size in (0, packed)]
        passes = 8 // micro_batch * (2 + again)
        assert bounds[1] - bounds[0] == pytest.approx(passes * packed / model.machine.bandwidth, rel=1e-9)


def test_gradients_of_a_frozen_model_s_inputs_are_exchanged_as_ever() -> None:
    """Adapters before a layer need the gradient of its input, so that tensor-parallel ranks add it up."""
    model = model_of("llama-3.1-8b", "h100-sxm")
    frozen, whole = (
        communication_seconds(model.graph, model.machine, replace(LOAD, num_devices=8, tp=8, frozen_weights=each))["tp"]
        for each in (True, False)
    )
    assert frozen == whole > 0
