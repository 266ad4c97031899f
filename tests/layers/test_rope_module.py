"""Rotations: published frequencies, and the law that only distances count."""

import math

import pytest
import torch
from torch import Tensor

from l4spec.layers.attention.positions import Llama3Scaling, Rope
from l4spec.layers.attention.rope import Rotation, inverse_frequencies
from l4spec.layers.common.modules import Context, TokenLayout
from l4spec.layers.gqa.module import _temperature
from l4spec.layers.gqa.spec import Temperature

SCOUT = Llama3Scaling(kind="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_seq_len=8192)


def at(*positions: int) -> Context:
    return Context(TokenLayout(1, len(positions), 0, torch.tensor(positions)))


def test_scouts_scaling_divides_29_of_64_frequencies_without_a_band() -> None:
    """llama-models, models/llama4/model.py, with Scout's factor 16 and low = high = 1."""
    plain = inverse_frequencies(Rope(kind="rope", theta=500000.0), 128)
    scaled = inverse_frequencies(Rope(kind="rope", theta=500000.0, scaling=SCOUT), 128)
    ratio = (plain / scaled).tolist()
    assert ratio == [1.0] * 35 + [16.0] * 29
    assert float(plain[35]) == pytest.approx(7.6449698832e-04, rel=1e-6)
    assert float(scaled[35]) == pytest.approx(4.7781061770e-05, rel=1e-6)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("rotary_dim", [8, 16])
def test_scores_of_rotated_vectors_depend_on_distance_alone(layout: str, rotary_dim: int) -> None:
    rope = Rope.model_validate({"kind": "rope", "theta": 100.0, "layout": layout})
    rotation = Rotation.of(rope, rotary_dim)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 16, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(query_at: int, key_at: int) -> float:
        return float((rotation(query, at(query_at)) * rotation(key, at(key_at))).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-5)  # the angles themselves are fp32
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_the_two_layouts_pair_other_elements() -> None:
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1.0
    turned: dict[str, Tensor] = {}
    for layout in ("interleaved", "half"):
        rope = Rope.model_validate({"kind": "rope", "theta": 100.0, "layout": layout})
        turned[layout] = Rotation.of(rope, 8)(x, at(1))[0, 0, 0]
    assert turned["interleaved"][:2].tolist() == pytest.approx([math.cos(1), math.sin(1)])
    assert turned["half"][[0, 4]].tolist() == pytest.approx([math.cos(1), math.sin(1)])


def test_temperature_steps_at_the_published_positions() -> None:
    """log(floor((position + 1) / 8192) + 1) * 0.1 + 1 of Llama 4's NoPE layers, position from 0."""
    expected = {8190: 1.0, 8191: 1.0693147180559945, 131071: 1.2833213344056216, 10485759: 1.7155396301896735}
    factors = _temperature(Temperature(floor_scale=8192.0, attn_scale=0.1), at(*expected)).flatten().tolist()
    assert factors == pytest.approx(list(expected.values()), rel=2**-23)
