"""Variants that nobody released are planned, built, measured and trained as released models are."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.runtime.build import build
from l4spec.runtime.measure.run import RunShape
from l4spec.spec.scale import scale_spec
from planners.catalog import engine
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from tests.properties.runs import measured, planned_flops, some, tokens

EXAMPLES = (
    "examples/scout-delta",
    "examples/maverick-latent",
    "examples/mamba-hybrid-8b",
    "examples/llama-3-8b-upcycled",
)
PARAMETERS = {
    "examples/scout-delta": 109_601_297_216,
    "examples/maverick-latent": 401_477_637_632,
    "examples/mamba-hybrid-8b": 8_346_268_672,
    "examples/llama-3-8b-upcycled": 8_030_261_248 + 32 * (7 * 3 * 4096 * 14336 + 8 * 4096),
}


def miniature(name: str) -> LayerGraph:
    spec = scale_spec(l4spec.load(name), "tiny")
    return l4spec.compile(spec.model_copy(update={"vision": None}))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_the_parameters_that_its_parts_add_up_to(name: str) -> None:
    assert count_params(l4spec.compile(l4spec.load(name))).total == PARAMETERS[name]


def test_delta_nets_keep_scouts_cache_from_growing_in_its_local_layers() -> None:
    def cache(name: str, context: int) -> int:
        graph = l4spec.compile(l4spec.load(name))
        return plan_cache(graph, engine("ideal"), dtype="bf16", context=context, batch=1).bytes

    grows = 12 * 2 * 8 * 128 * 2  # bytes a token of the global layers
    assert cache("examples/scout-delta", 8192) - cache("examples/scout-delta", 4096) == 4096 * grows
    state = 36 * (40 * 128 * 128 * 4 + 3 * (2 * 8 + 40) * 128 * 2)
    assert cache("examples/scout-delta", 1) == state + grows


def test_a_latent_caches_less_than_mavericks_global_layers() -> None:
    latent, whole = (
        plan_cache(l4spec.compile(l4spec.load(name)), engine("ideal"), dtype="bf16", context=2**20, batch=1)
        for name in ("examples/maverick-latent", "maverick")
    )
    assert latent.bytes_per_token_global * 2048 == whole.bytes_per_token_global * 576


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_miniature_of_an_example_runs_as_planned(name: str) -> None:
    graph = miniature(name)
    result = measured(graph, RunShape(40, 0, cache_lengths=(1, 40)), "weights", "prefill", "caches")
    assert result.params_by_part == some(count_params(graph).by_part)
    assert some(result.prefill_flops) == planned_flops(graph, Work(1, 40, num_logits=1))
    for context, num_bytes in result.cache_bytes.items():
        assert plan_cache(graph, engine("ideal"), dtype="fp32", context=context, batch=1).bytes == num_bytes


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_miniature_of_an_example_learns_a_batch_by_heart(name: str) -> None:
    """Eight steps of Adam on one batch: the loss, log(512) = 6.2 of random guesses at first, falls by more than 1."""
    model = build(miniature(name), dtype="fp32").train()
    ids, losses = tokens(model, 2, 40), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(8):
        loss = cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
