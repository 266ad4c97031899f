"""Sparse latent attention: it runs what it counts, keeps latents and index keys, and refuses what it cannot do."""

import pytest
import torch

import l4spec
from l4spec.errors import SpecError
from l4spec.layers.declaration import AttentionPairs, Work
from l4spec.runtime.build import build
from l4spec.runtime.compiled import CompiledStep
from l4spec.runtime.measure.flops import counting_flops
from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import undivided_reason
from l4spec.spec.model import ModelSpec
from tests.properties.runs import decoded, planned_flops, small_blocks, some, tokens
from tests.runtime.sparse_families import INDEX
from tests.runtime.tiny import MLA, SWIGLU, Json, graph_of, randomised, text_of, token_ids

SPARSE: Json = MLA | INDEX | {"kind": "sparse_mla"}
TEXT = text_of({"a": SPARSE, "f": SWIGLU}, [{"attention": "a", "ffn": "f", "repeat": 2}])


@pytest.mark.parametrize("length", [1, 4, 45])
@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_executed_flops_are_counted_layer_by_layer(length: int, phase: str) -> None:
    graph = graph_of(TEXT)
    model = build(graph, dtype="fp32").requires_grad_(phase == "train")
    with counting_flops(model) as counted, torch.set_grad_enabled(phase == "train"):
        logits = model(tokens(model, 2, length))
        if phase == "train":
            logits.sum().backward()
    assert some(counted) == planned_flops(graph, Work(2, length, phase="train" if phase == "train" else "prefill"))


@pytest.mark.parametrize("block", [3, 16, 512])
@pytest.mark.parametrize("pieces", [[7, 1, 1], [20, 13], [1, 1, 40], [30, 2, 9]])
def test_executed_flops_behind_a_cache_are_counted_layer_by_layer(block: int, pieces: list[int]) -> None:
    graph = graph_of(TEXT)
    with small_blocks(block):
        for work, counted in decoded(build(graph, dtype="fp32"), 2, pieces):
            assert counted == planned_flops(graph, work)


def test_the_mathematics_attend_to_the_chosen_tokens_and_ask_about_all() -> None:
    declaration = graph_of(TEXT).by_id["text.layers.0.attention"].declaration
    ops = {op.name: op for op in declaration.operations(Work(1, 1, 1000))}
    attend, index = ops["attend"], ops["index"]
    assert isinstance(attend, AttentionPairs)
    assert attend.pairs == INDEX["index_topk"]
    assert index.flops == 2 * 1001 * INDEX["index_num_heads"] * (INDEX["index_head_dim"] + 1)


def test_a_token_of_deepseek_v32_keeps_its_latent_and_an_index_key() -> None:
    graph = l4spec.compile(l4spec.load("deepseek-v3.2"))
    entries = graph.by_id["text.layers.0.attention"].declaration.cache
    # SGLang's fp8 cache: 656 B are 512 of the latent, 4 scales of 4 B and 64 rotated elements of 2 B; 132 B are 128 of
    # the index key and one scale of 4 B (sgl-project/sglang#11309: 48,068 B a token in all of 61 layers)
    assert [entry.elements_per_token for entry in entries] == [512, 64, 128]


def test_a_compiled_step_is_the_models_own() -> None:
    model, ids = randomised(graph_of(TEXT)), token_ids(2, 12)
    step = CompiledStep(model, backend="eager")
    cache, again = model.new_cache(2, 12), model.new_cache(2, 12)
    with torch.no_grad():
        model(ids[:, :9], cache=cache)
        model(ids[:, :9], cache=again)
        for column in torch.split(ids[:, 9:], 1, dim=1):
            assert (step(column, cache=cache) - model(column, cache=again)).abs().max() < 1e-5


def test_a_sequence_is_not_divided_among_ranks() -> None:
    assert undivided_reason(graph_of(TEXT), Layout(cp=2)) is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q_lora_rank": None}, "needs q_lora_rank"),
        ({"mask": {"kind": "chunked", "size": 8}}, "takes mask causal"),
        ({"index_head_dim": 4}, "must be at least qk_rope_head_dim"),
    ],
)
def test_what_an_index_cannot_do_is_refused(changed: Json, message: str) -> None:
    text = text_of({"a": SPARSE | changed}, [{"attention": "a"}])
    with pytest.raises((SpecError, ValueError), match=message):
        ModelSpec.model_validate({"l4spec": 1, "name": "x", "text": text})
