"""Measuring itself: counters, the memory ledger, expert load and the time limit."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.grouped_linear import grouped_linear
from l4spec.runtime.build import build
from l4spec.runtime.measure.experts import watching_experts
from l4spec.runtime.measure.flops import FORMULAS, OUTSIDE, counting_flops
from l4spec.runtime.measure.memory import tracking_memory
from l4spec.runtime.measure.run import STAGES, RunShape, measure_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scout() -> LayerGraph:
    return l4spec.compile(l4spec.load("tiny/scout"))


def test_torch_alone_counts_fused_attention_and_grouped_experts_as_nothing() -> None:
    x, stack, ends = torch.randn(5, 4), torch.randn(3, 6, 4), torch.tensor([2, 2, 5], dtype=torch.int32)
    query = torch.randn(1, 2, 7, 8)

    def run() -> None:
        grouped_linear(x, stack, ends)
        nn.functional.scaled_dot_product_attention(query, query, query)

    with FlopCounterMode(display=False) as plain:
        run()
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as ours:
        run()
    assert plain.get_total_flops() == 0
    assert ours.get_total_flops() == 2 * 5 * 4 * 6 + 2 * 2 * 7 * 7 * (8 + 8)


@pytest.mark.parametrize("train", [False, True])
def test_flops_by_layer_add_up_to_what_torch_counts(scout: LayerGraph, train: bool) -> None:
    model, ids = build(scout, dtype="fp32"), torch.arange(40)[None]

    def run() -> None:
        with torch.set_grad_enabled(train):
            total = model(ids).sum()
        if train:
            total.backward()

    with counting_flops(model) as counted:
        run()
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as torchs:
        run()
    assert counted.total() == torchs.get_total_flops() > 0
    assert OUTSIDE not in counted


def test_what_runs_outside_any_layer_is_counted_apart(scout: LayerGraph) -> None:
    model = build(scout, dtype="fp32")
    with torch.no_grad(), counting_flops(model) as counted:
        logits = model(torch.arange(10)[None])
        logits[0] @ logits[0].T
    assert counted[OUTSIDE] == 2 * 10 * 10 * logits.shape[-1]


def test_memory_counts_each_storage_once_and_only_what_is_new() -> None:
    old = torch.zeros(1000)
    with tracking_memory(CPU) as memory:
        _ = old.view(10, 100).t()
        first = old + 1
        view = first[10:]
        second = first * 2
        del first, view
        third = second.half()
    assert memory.peak_bytes == 2 * 4000
    assert memory.live_bytes == 4000 + 2000
    del second, third
    assert memory.live_bytes == 0


def test_expert_load_counts_every_choice(scout: LayerGraph) -> None:
    model = build(scout, dtype="fp32")
    with torch.no_grad(), watching_experts(model) as load:
        model(torch.arange(30)[None])
        model(torch.arange(12)[None])
    assert load
    assert all(sum(counts) == 42 and len(counts) == 16 for counts in load.values())


def test_every_stage_is_reported_and_done(scout: LayerGraph) -> None:
    stages: list[str] = []
    measurement = measure_run(build(scout, dtype="fp32"), RunShape(20, 2, cache_lengths=(22,)), progress=stages.append)
    assert tuple(stages) == tuple(measurement.done) == STAGES
    assert measurement.decode_seconds is not None
    assert measurement.decode_seconds > 0
    assert measurement.cache_bytes[22] > 0


def test_a_time_limit_leaves_what_was_measured_before_it(scout: LayerGraph) -> None:
    measurement = measure_run(build(scout, dtype="fp32"), RunShape(20, 2), time_limit=0)
    assert measurement.done == ["weights"]
    assert measurement.weight_bytes
    assert measurement.prefill_seconds is None


def test_measuring_leaves_no_hook_and_no_gradient_behind(scout: LayerGraph) -> None:
    model = build(scout, dtype="fp32")
    measure_run(model, RunShape(20, 2, training=True), time_limit=600)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
