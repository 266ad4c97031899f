"""Modules of multi-token prediction of random models: what is planned of them is what they hold and run."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import l4spec
from l4spec.graph.build import mtp_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.quantization.scheme import scheme_named
from l4spec.quantization.tensors import scheme_of
from l4spec.runtime.build import build
from l4spec.runtime.checkpoints import open_mtp
from l4spec.runtime.measure.flops import FORMULAS
from l4spec.runtime.module_inventory import module_bytes, module_tensors
from l4spec.runtime.mtp import build_mtp, hidden_states
from l4spec.sharding.layout import Layout
from planners.counts.mtp import count_mtp, mtp_weight_bytes
from planners.counts.params import count_params
from planners.counts.weights import weigh
from planners.module.executed import executed_flops
from tests.properties.runs import longest_prompt, tokens
from tests.strategies import graphs


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@given(graphs(mtp=True, vision=False), st.sampled_from(["fp32", "bf16"]))
def test_planned_parameters_and_bytes_are_those_held(graph: LayerGraph, dtype: str) -> None:
    model = build(graph, dtype=dtype, seed=None)
    modules, counts, declared = build_mtp(model, seed=None), count_mtp(graph), graph.model.text.mtp
    assert counts is not None
    assert declared is not None
    assert sum(p.numel() for module in modules for p in module.parameters()) == counts.own
    tables = (("embedding", declared.copies_embedding), ("head", declared.copies_head))
    again = [model.get_submodule(f"text.{name}") for name, is_copied in tables if is_copied]
    assert sum(p.numel() for table in again for p in table.parameters()) * len(modules) == counts.copies
    planned = mtp_weight_bytes(graph, scheme_of(scheme_named(dtype)), Layout())
    assert planned == module_bytes(modules[0]) + sum(map(module_bytes, again))
    plain = l4spec.compile(graph.model.spec.without_modules())
    assert count_params(plain) == count_params(graph)
    assert weigh(plain, scheme_of(scheme_named(dtype))) == weigh(graph, scheme_of(scheme_named(dtype)))


@given(graphs(mtp=True, vision=False), st.integers(2, 60), st.integers(1, 3), st.booleans())
def test_executed_flops_of_a_module_are_planned(graph: LayerGraph, length: int, batch: int, train: bool) -> None:
    module_graph, length = mtp_graph(graph), min(length, longest_prompt(graph))
    model = build(graph, dtype="fp32")
    module = build_mtp(model)[0]
    assert module_graph is not None
    hidden = torch.randn(batch, length, graph.model.text.stack.width.hidden_size, requires_grad=train)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with torch.set_grad_enabled(train), counter:
        logits, _ = module.train(train)(hidden, tokens(model, batch, length))
        if train:
            logits.sum().backward()
    work = Work(batch, length, phase="train") if train else Work(batch, length)
    assert counter.get_total_flops() == executed_flops(module_graph, work)


@settings(max_examples=8)
@given(graphs(mtp=True))
def test_modules_come_back_from_a_checkpoint(graph: LayerGraph) -> None:
    model = build(graph, dtype="fp32")
    modules = build_mtp(model)
    ids = tokens(model, 1, 3)
    with TemporaryDirectory() as folder:
        l4spec.save_checkpoint(model, Path(folder) / "saved", modules=modules)
        again = l4spec.open_model(Path(folder) / "saved", dtype="fp32")
        for one, other in zip(open_mtp(again, Path(folder) / "saved"), modules, strict=True):
            left, right = module_tensors(one), module_tensors(other)
            assert left.keys() == right.keys()
            assert all(left[name].equal(right[name]) for name in left)
            with torch.no_grad():
                expected = other(hidden_states(model, ids), ids)[0]
                assert one(hidden_states(again, ids), ids)[0].equal(expected)
