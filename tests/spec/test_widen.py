"""A wider relative is a valid spec of the same pattern, nearly as much wider as asked for."""

from fractions import Fraction

import pytest

import l4spec
from l4spec.errors import UserError
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.library import shipped_specs
from l4spec.spec.widen import nearest_step, read_factor, widen

NAMES = sorted(name for name in shipped_specs() if "/" not in name)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_spec_has_a_wider_relative_that_compiles(name: str) -> None:
    spec = l4spec.load(name)
    wider = widen(spec, Fraction(3, 2))
    assert l4spec.compile(wider).num_layers == l4spec.compile(spec).num_layers
    # a step is at most a quarter of a stream of these models, so that half of one moves 1.5 by less than 0.13
    assert 1.37 <= wider.text.hidden_size / spec.text.hidden_size <= 1.63


def test_scout_grows_in_heads_experts_and_stream_and_keeps_its_cache() -> None:
    scout, wider = l4spec.load("scout"), widen(l4spec.load("scout"), Fraction(5, 4))
    before, after = scout.text.parts["global"], wider.text.parts["global"]
    assert isinstance(before, GQASpec)
    assert isinstance(after, GQASpec)
    assert (after.num_heads, after.num_kv_heads, after.head_dim) == (48, before.num_kv_heads, before.head_dim)
    moe = wider.text.parts["moe"]
    assert isinstance(moe, MoESpec)
    assert (moe.num_experts, moe.intermediate_size) == (16, 10_240)
    assert wider.text.hidden_size == 48 * 128  # as wide as all query heads, as before
    assert wider.vision is not None
    assert wider.vision.projector.output_size == wider.text.hidden_size
    assert not wider.claims


def test_a_factor_of_one_is_the_spec_itself() -> None:
    spec = l4spec.load("scout")
    assert widen(spec, Fraction(1)) is spec


def test_a_size_becomes_the_nearest_multiple_of_its_own_step() -> None:
    assert nearest_step(5120, Fraction(3, 2), 128) == 7680
    assert nearest_step(96, Fraction(4, 3), 128) == 128
    assert nearest_step(100, Fraction(11, 10), 128) == 112  # steps of 4: 110 lies between 108 and 112
    assert nearest_step(8, Fraction(1, 10), 8) == 8


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "x", "", "1/0", "101", "nan"])
def test_what_is_no_factor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"from 0\.1 to 100"):
        read_factor(text)


def test_a_kind_without_a_size_is_named() -> None:
    spec = l4spec.load("scout")
    moe = spec.text.parts["moe"].model_copy()
    part = type("Opaque", (), {"kind": "opaque"})()
    text = spec.text.model_copy(update={"parts": {"moe": moe, "odd": part}})
    with pytest.raises(UserError, match=r"text\.parts\.odd: kind 'opaque' has no size to widen"):
        widen(spec.model_copy(update={"text": text}), Fraction(2))


def test_a_wider_relative_keeps_its_estimates_and_nothing_that_is_published() -> None:
    behemoth = l4spec.load("behemoth")
    wider = widen(behemoth, Fraction(3, 2))
    assert wider.estimated == behemoth.estimated != ()
    assert (wider.about, wider.claims, wider.huggingface) == (None, (), None)
