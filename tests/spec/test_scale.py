"""Miniatures keep the structure of what they are made from, and are valid specs themselves."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.huggingface import export_config
from l4spec.layers.attention.masks import ChunkedMask
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.library import shipped_specs
from l4spec.spec.model import ModelSpec
from l4spec.spec.scale import Scale, parse_scale, scale_spec

SCALES: tuple[Scale, ...] = ("tiny", Fraction(1, 64), Fraction(1, 7), Fraction(1, 2))
NAMES = sorted(shipped_specs())


def kinds(spec: ModelSpec) -> list[tuple[str | None, ...]]:
    """The kinds of attention and feed-forward layer of each block."""
    blocks = l4spec.compile(spec).model.text.stack.blocks
    return [tuple(part.spec.kind if part else None for part in (b.attention, b.ffn)) for b in blocks]


def num_parameters(spec: ModelSpec) -> int:
    """All parameters of a model."""
    return sum(parameter.numel for _, parameter in l4spec.compile(spec).parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_a_miniature_of_every_shipped_spec_compiles_and_is_no_larger(name: str, scale: Scale) -> None:
    spec = l4spec.load(name)
    small = scale_spec(spec, scale)
    assert num_parameters(small) <= num_parameters(spec)
    assert small.claims == ()
    if scale != "tiny":
        assert kinds(small) == kinds(spec)


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_fits_the_same_hugging_face_family_as_its_original(name: str) -> None:
    spec = l4spec.load(name)
    try:
        family = export_config(spec)["model_type"]
    except l4spec.SpecError:
        return
    if name in ("compare/mimo-v2-flash", "compare/gemma-4-26b-a4b"):
        return  # families that tie heads in windows to those of other layers, which a miniature does not keep
    assert {export_config(scale_spec(spec, scale))["model_type"] for scale in SCALES} == {family}


def test_scouts_miniature_keeps_ratio_top_k_shared_expert_chunks_and_the_fold_of_images() -> None:
    spec, small = l4spec.load("scout"), scale_spec(l4spec.load("scout"), Fraction(1, 64))
    local, moe = small.text.parts["local"], small.text.parts["moe"]
    assert isinstance(local, GQASpec)
    assert isinstance(moe, MoESpec)
    assert local.num_heads == 5 * local.num_kv_heads
    assert isinstance(local.mask, ChunkedMask)
    assert local.mask.size * 64 == 8192
    assert (moe.num_experts, moe.num_experts_per_token, moe.num_shared_experts) == (16, 1, 1)
    assert small.text.hidden_size * 64 == spec.text.hidden_size
    assert moe.intermediate_size * 64 == 8192
    assert small.vision is not None
    assert small.vision.grid % small.vision.adapter.fold == 0
    assert small.vision.projector.output_size == small.text.hidden_size


def test_tiny_lays_each_pattern_once_and_runs_across_chunks_within_a_short_prompt() -> None:
    small = scale_spec(l4spec.load("maverick"), "tiny")
    assert kinds(small) == kinds(l4spec.load("tiny/maverick"))
    assert isinstance(small.text.parts["local"], GQASpec)
    assert small.text.parts["local"].mask == l4spec.load("tiny/maverick").text.parts["local"].mask  # type: ignore[attr-defined]
    assert num_parameters(small) < 20_000_000


@given(name=st.sampled_from(NAMES), data=st.data())
@settings(max_examples=40)
def test_fewer_layers_are_the_first_ones_of_the_original(name: str, data: st.DataObject) -> None:
    spec = l4spec.load(name)
    count = data.draw(st.integers(1, spec.text.num_layers))
    fewer = scale_spec(spec, num_layers=count)
    assert kinds(fewer) == kinds(spec)[:count]
    text = l4spec.compile(fewer).model.text
    blocks = [*text.stack.blocks, *([text.mtp.block] if text.mtp else [])]
    used = {part.name for block in blocks for _, part in block.parts}
    assert set(fewer.text.parts) == used


def test_at_scale_one_nothing_but_the_name_of_a_derived_spec_changes() -> None:
    spec = l4spec.load("scout")
    assert scale_spec(spec, Fraction(1)).text == spec.text
    assert scale_spec(spec, Fraction(1)).vision == spec.vision


@pytest.mark.parametrize("count", [0, -1, 49])
def test_layers_that_the_model_does_not_have_are_refused(count: int) -> None:
    with pytest.raises(l4spec.UserError, match="1 to 48 layers"):
        scale_spec(l4spec.load("scout"), num_layers=count)


@pytest.mark.parametrize(
    "text", ["", "0", "2", "0/1", "1/0", "2/1", "-1/2", "1/2/3", "1/99999999", "Tiny", "½", "1/64\n"]
)
def test_a_scale_that_is_no_ratio_up_to_one_is_refused(text: str) -> None:
    with pytest.raises(l4spec.UserError, match="tiny or a ratio"):
        parse_scale(text)


def test_scales_are_read_exactly() -> None:
    assert parse_scale("1/64") == Fraction(1, 64)
    assert parse_scale("3/4") == Fraction(3, 4)
    assert parse_scale("tiny") == "tiny"
