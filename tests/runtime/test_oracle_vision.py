"""Images equal the reference implementation: one and several tiles, placed at their tokens, with gradients."""

import copy

import pytest
import torch
from torch import Tensor

from l4spec.runtime.model import Model
from tests.runtime.oracles import PATCH_TOKEN, Oracle, llama4_vision, translated
from tests.runtime.test_oracle_text import MEDIANS_DIFFER, loss_of, median_error, relative
from tests.runtime.tiny import graph_of, token_ids

TOKENS_PER_TILE = 4


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return llama4_vision()


def model_of(oracle: Oracle) -> Model:
    model = oracle.ours()
    model.image_token_id = PATCH_TOKEN
    return model


def prompt(*tiles_at: tuple[int, int, int], rows: int = 1) -> Tensor:
    """Text of 34 tokens with places for images: (row, first token, tiles)."""
    ids = token_ids(rows, 34, vocab=PATCH_TOKEN)
    for row, first, tiles in tiles_at:
        ids[row, first : first + tiles * TOKENS_PER_TILE] = PATCH_TOKEN
    return ids


def pixels(tiles: int) -> Tensor:
    return torch.randn(tiles, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "ids",
    [prompt((0, 3, 1)), prompt((0, 0, 3)), prompt((0, 2, 1), (0, 20, 3)), prompt((1, 5, 2), (0, 9, 1), rows=2)],
    ids=["one tile", "three tiles first", "two images", "two rows"],
)
def test_images_at_their_places_equal_the_reference(oracle: Oracle, ids: Tensor) -> None:
    tiles = int((ids == PATCH_TOKEN).sum()) // TOKENS_PER_TILE
    with torch.no_grad():
        expected = oracle.reference(input_ids=ids, pixel_values=pixels(tiles)).logits
        got = model_of(oracle)(ids, pixel_values=pixels(tiles))
    assert relative(got, expected) < oracle.bound


def test_bf16_images_are_no_farther_from_fp32_than_the_references_own(oracle: Oracle) -> None:
    ids = prompt(*((row, 2, 3) for row in range(20)), rows=20)
    model = oracle.ours("bf16")
    model.image_token_id = PATCH_TOKEN
    rounded = copy.deepcopy(oracle.reference).bfloat16()
    with torch.no_grad():
        exact = oracle.reference(input_ids=ids, pixel_values=pixels(60)).logits
        theirs = rounded(input_ids=ids, pixel_values=pixels(60).bfloat16()).logits.float()
        ours = model(ids, pixel_values=pixels(60))
    assert median_error(ours, exact) <= MEDIANS_DIFFER * median_error(theirs, exact)


def test_gradients_through_the_image_equal_the_reference(oracle: Oracle) -> None:
    ids = prompt((0, 3, 2))
    model = model_of(oracle).train()
    torch.autograd.backward(loss_of(model(ids, pixel_values=pixels(2)), ids))
    oracle.reference.zero_grad()
    torch.autograd.backward(loss_of(oracle.reference(input_ids=ids, pixel_values=pixels(2)).logits, ids))
    expected = {n: p.grad for n, p in oracle.reference.named_parameters() if p.grad is not None}
    ours = dict(model.named_parameters())
    largest = max(float(grad.abs().max()) for grad in expected.values())
    names = set()
    for name, grad in translated(expected.items()):
        actual = ours[name].grad
        assert actual is not None
        assert float((actual - grad).abs().max()) < 2 * oracle.bound * max(float(grad.abs().max()), 0.1 * largest), name
        names.add(name)
    assert {name for name in ours if name.startswith("vision.")} <= names


def test_text_alone_equals_the_reference_without_running_the_tower(oracle: Oracle) -> None:
    ids = token_ids(2, 20, vocab=PATCH_TOKEN)
    model = model_of(oracle)
    with torch.no_grad():
        assert relative(model(ids), oracle.reference(input_ids=ids).logits) < oracle.bound


def test_images_encoded_once_serve_a_prompt_read_in_chunks(oracle: Oracle) -> None:
    model, ids = model_of(oracle), prompt((0, 3, 3))
    with torch.no_grad():
        whole = model(ids, pixel_values=pixels(3))
        vectors = model.encode_images(pixels(3)).flatten(0, 1)
    cache = model.new_cache(1, 34)
    parts, used = [], 0
    for chunk in torch.split(ids, 7, dim=1):
        here = int((chunk == PATCH_TOKEN).sum())
        parts.append(model(chunk, image_features=vectors[used : used + here], cache=cache))
        used += here
    assert relative(torch.cat(parts, dim=1), whole) < oracle.bound


def test_padding_before_an_image_changes_nothing(oracle: Oracle) -> None:
    model, ids = model_of(oracle), prompt((0, 3, 1))
    padded = torch.nn.functional.pad(ids, (5, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
    with torch.no_grad():
        got = model(padded, pixel_values=pixels(1), attention_mask=mask)[:, 5:]
        assert relative(got, model(ids, pixel_values=pixels(1))) < oracle.bound


def test_vectors_that_do_not_fill_the_places_are_refused(oracle: Oracle) -> None:
    with pytest.raises(ValueError, match="8 image vectors for 4 tokens"):
        model_of(oracle)(prompt((0, 3, 1)), pixel_values=pixels(2))


def test_a_model_without_a_place_token_asks_for_one(oracle: Oracle) -> None:
    model = oracle.ours()
    with pytest.raises(ValueError, match="image_token_id"):
        model(prompt((0, 3, 1)), pixel_values=pixels(1))


def test_a_text_model_refuses_images(oracle: Oracle) -> None:
    from l4spec.runtime.build import build

    with pytest.raises(ValueError, match="no vision tower"):
        build(graph_of(oracle.text)).encode_images(pixels(1))
