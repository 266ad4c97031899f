"""Random models under random schemes: planned quantized bytes are those stored, and packed weights run as planned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.quantization.scheme import Quantization
from l4spec.quantization.tensors import fitted, scheme_of
from l4spec.runtime.build import build, build_quantized
from l4spec.runtime.measure.flops import counting_flops
from l4spec.runtime.module_inventory import contents_of, module_bytes
from l4spec.runtime.quantize.apply import quantize
from l4spec.spec.storage import Rule, ScaledLaw
from planners.counts.params import count_params
from planners.counts.weights import weigh
from tests.properties.runs import longest_prompt, planned_flops, some, tokens
from tests.runtime.quantize.laws import RUNNABLE, fitted_scheme, runnable_laws
from tests.strategies import graphs

STEPPED = graphs(step=4)
"""Widths that groups of 4 divide."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scheme_with(law: ScaledLaw, parts: tuple[str, ...], layers: str) -> Quantization:
    """A scheme that packs linear layers and experts of some parts and layers by any law."""
    rule = Rule.model_validate({"parts": parts, "roles": ["linear", "expert"], "layers": layers, "law": law})
    return Quantization.model_validate(
        {
            "name": "drawn",
            "description": "a random scheme",
            "source": "drawn by a test",
            "compute_dtype": "bf16",
            "default": {"kind": "plain", "dtype": "bf16"},
            "rules": (rule,),
        }
    )


PARTS = st.lists(
    st.sampled_from(["attention", "dense_ffn", "routed_experts", "shared_expert", "vision", "projector"]), unique=True
).map(tuple)
drawn_schemes = st.builds(scheme_with, runnable_laws, PARTS, st.sampled_from(["all", "first", "inner"]))


@given(STEPPED, drawn_schemes)
def test_planned_quantized_bytes_are_those_stored_by_any_law(graph: LayerGraph, table: Quantization) -> None:
    table = fitted(graph, table)  # patches of images have other widths
    model = build_quantized(graph, table, seed=None)
    assert module_bytes(model) == weigh(graph, scheme_of(table)).bytes
    assert contents_of(model).by_part == some(count_params(graph).by_part)


@given(graphs(), st.sampled_from(RUNNABLE))
def test_planned_quantized_bytes_are_those_stored_by_every_shipped_scheme(graph: LayerGraph, name: str) -> None:
    table = fitted_scheme(graph, name)
    model = quantize(build(graph), table)
    assert module_bytes(model) == weigh(graph, scheme_of(table)).bytes


@given(STEPPED, drawn_schemes, st.integers(1, 40), st.integers(1, 3))
def test_packed_weights_run_as_many_flops_as_planned(
    graph: LayerGraph, table: Quantization, length: int, batch: int
) -> None:
    model, length = build_quantized(graph, fitted(graph, table)), min(length, longest_prompt(graph))
    with torch.no_grad(), counting_flops(model) as counted:
        model(tokens(model, batch, length))
    assert some(counted) == planned_flops(graph, Work(batch, length))
