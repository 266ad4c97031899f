"""Compressed attention: it runs what it counts, keeps windows and entries to the byte, and refuses the rest."""

import pytest
import torch

import l4spec
from l4spec.errors import SpecError, UserError
from l4spec.layers.compressed_attention.pairs import entry_pairs
from l4spec.layers.declaration import AttentionPairs, Work
from l4spec.runtime.build import build
from l4spec.runtime.compiled import CompiledStep
from l4spec.runtime.measure.flops import counting_flops
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import illegal_reason
from l4spec.sharding.sequence import undivided_reason
from l4spec.spec.model import ModelSpec
from planners.catalog import engine
from planners.counts.kv_cache import plan_cache
from tests.properties.runs import decoded, planned_flops, small_blocks, some, tokens
from tests.runtime.compressed_families import ATTENTION, HEAVY, SPARSE, TEXT
from tests.runtime.tiny import SWIGLU, Json, graph_of, randomised, text_of, token_ids


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("length", [1, 4, 45])
@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_executed_flops_are_counted_layer_by_layer(length: int, phase: str, block: int) -> None:
    graph = graph_of(TEXT)
    model = build(graph, dtype="fp32").requires_grad_(phase == "train")
    with small_blocks(block), counting_flops(model) as counted, torch.set_grad_enabled(phase == "train"):
        logits = model(tokens(model, 2, length))
        if phase == "train":
            logits.sum().backward()
    with small_blocks(block):
        planned = planned_flops(graph, Work(2, length, phase="train" if phase == "train" else "prefill"))
    assert some(counted) == planned


@pytest.mark.parametrize("block", [3, 16, 512])
@pytest.mark.parametrize("pieces", [[7, 1, 1], [20, 13], [1, 1, 40], [30, 2, 9], [3, 1, 1, 1, 1]])
def test_executed_flops_behind_a_cache_are_counted_layer_by_layer(block: int, pieces: list[int]) -> None:
    graph = graph_of(TEXT)
    with small_blocks(block):
        for work, counted in decoded(build(graph, dtype="fp32"), 2, pieces):
            assert counted == planned_flops(graph, work)


@pytest.mark.parametrize("pieces", [[45], [1] * 45, [3, 4, 5, 6, 7, 20], [23, 1, 1, 20], [6, 6, 6, 27], [2, 43]])
def test_a_prompt_in_pieces_gives_the_logits_of_the_prompt_at_once(pieces: list[int]) -> None:
    model = randomised(graph_of(TEXT))
    ids = token_ids(2, 45)
    cache, parts = model.new_cache(2, 45), []
    with torch.no_grad():
        for part in torch.split(ids, pieces, dim=1):
            parts.append(model(part, cache=cache))
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("most", [None, 1, 3])
@pytest.mark.parametrize("ratio", [2, 5])
def test_entry_pairs_are_those_that_a_loop_counts(ratio: int, most: int | None) -> None:
    for cached in range(14):
        for queries in range(1, 14):
            seen = [(p + 1) // ratio for p in range(cached, cached + queries)]
            assert entry_pairs(queries, cached, ratio, most) == sum(n if most is None else min(n, most) for n in seen)


@pytest.mark.parametrize("context", [1, 5, 6, 7, 8, 24, 45])
def test_caches_take_the_planned_bytes_at_every_length(context: int) -> None:
    graph = graph_of(TEXT)
    planned = plan_cache(graph, engine("ideal"), dtype="fp32", context=context, batch=3)
    assert build(graph, "meta").new_cache(3, context).num_bytes == planned.bytes


def test_deepseek_v4_flash_keeps_windows_entries_and_what_entries_are_made_of() -> None:
    graph = l4spec.compile(l4spec.load("deepseek-v4-flash"))
    sparse, heavy = (graph.by_id[f"text.layers.{layer}.attention"].declaration for layer in (2, 3))
    kept = [(e.name, e.elements_per_token, e.bound.kind, e.bound.size) for e in sparse.cache]
    assert kept == [
        ("key", 512, "window", 128),
        ("entry", 512, "compressed", 4),
        ("index_key", 128, "compressed", 4),
        ("gated_key", 2048, "window", 7),
        ("gated_index_key", 512, "window", 7),
    ]
    assert [(e.elements_per_token, e.bound.size) for e in heavy.cache] == [(512, 128), (512, 128), (1024, 127)]
    whole = plan_cache(graph, engine("ideal"), dtype="bf16", context=131072, batch=1)
    windows = 2 * (43 * 128 * 512 + 21 * 7 * 2560 + 20 * 127 * 1024)
    assert whole.bytes == windows + 2 * (21 * 131072 // 4 * 640 + 20 * 131072 // 128 * 512)
    assert whole.bytes_per_token_global == 2 * (21 * 640 // 4 + 20 * 512 // 128)


def test_the_mathematics_attend_to_the_window_and_the_chosen_entries() -> None:
    declaration = graph_of(TEXT).by_id["text.layers.1.attention"].declaration
    ops = {op.name: op for op in declaration.operations(Work(1, 1, 999))}
    attend, index = ops["attend"], ops["index"]
    assert isinstance(attend, AttentionPairs)
    assert attend.pairs == 7 + 3
    assert index.flops == 2 * 250 * 8 * (12 + 1)


def test_an_index_has_no_gradient_and_all_else_has() -> None:
    model = randomised(graph_of(TEXT)).train()
    model(token_ids(2, 30)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in model.named_parameters() if ".attention.index." in name}


def test_a_compiled_step_a_divided_sequence_and_uneven_groups_are_refused() -> None:
    graph = graph_of(text_of({"a": HEAVY, "f": SWIGLU}, [{"attention": "a", "ffn": "f"}]))
    with pytest.raises(UserError, match="several laws"):
        CompiledStep(build(graph))
    assert "compressed_attention" in str(undivided_reason(graph, Layout(cp=2)))
    assert illegal_reason(graph, Layout(tp=2)) is None
    assert "does not divide 2" in str(illegal_reason(graph, Layout(tp=4)))


WRONG: dict[str, tuple[Json, str]] = {
    "groups": (ATTENTION | {"num_output_groups": 3}, "must divide num_heads"),
    "odd rotation": (ATTENTION | {"rope_head_dim": 3}, "must be even"),
    "wide rotation": (ATTENTION | {"rope_head_dim": 18}, "at most head_dim"),
    "index": (
        SPARSE | {"compression": {"ratio": 4, "index": {"num_heads": 2, "head_dim": 2, "topk": 1}}},
        "at least rope_head_dim",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_sizes_that_do_not_fit_are_refused_at_their_place(name: str) -> None:
    part, message = WRONG[name]
    text = text_of({"a": part, "f": SWIGLU}, [{"attention": "a", "ffn": "f"}])
    with pytest.raises((SpecError, ValueError), match=message):
        ModelSpec.model_validate({"l4spec": 1, "name": "wrong", "text": text})
