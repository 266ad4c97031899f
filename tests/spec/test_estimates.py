"""Which numbers an estimated field marks: a field marks nothing only if no other value of it changes a plan."""

import pytest

import l4spec
from l4spec.spec.estimates import effect_of, estimates_of
from planners.plan import plan

EFFECTS = {
    ("scout", "text.hidden_size"): "sizes",
    ("scout", "text.layers"): "sizes",
    ("scout", "vision"): "sizes",
    ("scout", "vision.tower.hidden_size"): "sizes",
    ("scout", "text.parts.moe.num_experts_per_token"): "sizes",
    ("scout", "text.parts.moe.router"): "sizes",
    ("scout", "text.parts.moe.router.score"): "none",
    ("scout", "text.parts.local.mask"): "work",
    ("scout", "text.parts.local.mask.size"): "work",
    ("scout", "text.parts.local.qk_norm"): "none",
    ("scout", "text.parts.global.temperature.attn_scale"): "none",
    ("scout", "text.parts.local.position.theta"): "none",
    ("scout", "text.parts.local.position"): "work",
    ("scout", "text.norm.eps"): "none",
    ("scout", "text.max_seq_len"): "work",
    ("gpt-3-175b", "text.max_seq_len"): "sizes",
    ("qwen3-8b", "text.parts.attention.qk_norm"): "sizes",
    ("qwen3-8b", "text.parts.attention.qk_norm.eps"): "none",
    ("scout", "text"): "sizes",
    ("scout", "name"): "none",
}


@pytest.mark.parametrize(("name", "path"), EFFECTS)
def test_a_field_has_the_effect_of_what_it_enters(name: str, path: str) -> None:
    assert effect_of(l4spec.load(name), path) == EFFECTS[name, path]


@pytest.mark.parametrize(
    "change",
    [
        "text.parts.local.position.theta=10000",
        "text.parts.local.position.layout=half",
        "text.parts.local.position.scaling=null",
        "text.parts.local.qk_norm=null",
        "text.parts.global.temperature=null",
        "text.norm.eps=0.5",
        "text.parts.moe.router.score=softmax",
        "text.parts.moe.router.scales=output",
    ],
)
@pytest.mark.parametrize("engine", ["ideal", "vllm-hybrid"])
def test_a_field_without_effect_changes_no_number(change: str, engine: str) -> None:
    path = change.split("=", maxsplit=1)[0]
    assert effect_of(l4spec.load("scout"), path) == "none"
    before, after = (
        plan(l4spec.compile(l4spec.load("scout", changes)), gpus="8xH100", engine=engine, context=100_000)
        for changes in ([], [change])
    )
    assert before == after


@pytest.mark.parametrize("change", ["text.parts.local.mask.size=1024", "text.max_seq_len=20000000"])
def test_a_field_of_work_changes_no_parameter(change: str) -> None:
    assert effect_of(l4spec.load("scout"), change.split("=", maxsplit=1)[0]) == "work"
    before, after = (plan(l4spec.compile(l4spec.load("scout", changes))) for changes in ([], [change]))
    assert before.params == after.params
    assert before.weights == after.weights


def test_frequencies_matter_where_an_engine_would_keep_a_second_table() -> None:
    two = ["text.parts.global.position={kind: rope, theta: 500000}"]
    assert effect_of(l4spec.load("scout", two), "text.parts.local.position.theta") == "work"


def test_part_names_are_no_fields() -> None:
    renamed = ["text.parts.eps={kind: swiglu, intermediate_size: 64}"]
    assert effect_of(l4spec.load("scout", renamed), "text.parts.eps.intermediate_size") == "sizes"


def test_guard_4_rests_on_nothing_and_behemoth_on_what_it_lists() -> None:
    guard, behemoth = (l4spec.load(name) for name in ("llama-guard-4-12b", "behemoth"))
    assert estimates_of(guard).work == ()
    assert {"text.hidden_size", "text.layers"} <= set(estimates_of(behemoth).params) <= set(behemoth.estimated)
