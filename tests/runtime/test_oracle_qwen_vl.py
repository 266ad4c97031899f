"""Qwen3-VL and Qwen3.5 with images equal transformers: tower, vectors for blocks, places, checkpoints both ways.

The bound is that of `tests.runtime.oracles` for sums of 128 products (four patches of 32 folded into one) through seven
layers, 2 sqrt(2) sqrt(K D) u = 1.25e-5, held to the 1e-5 that logits of every kind are held to;
of Qwen3.5, whose delta nets pass errors on from token to token, to as many times that as of their text alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import l4spec
import planners
from l4spec.errors import UserError
from l4spec.huggingface import FAMILIES, import_config
from l4spec.runtime.compiled import CompiledStep
from l4spec.runtime.images import image_prompt
from l4spec.runtime.model import Model
from tests.runtime.hybrid_families import AMPLIFIED
from tests.runtime.test_oracle_text import relative

BOUND, GRADIENT_BOUND = 1e-5, 1e-4
IMAGE, PATCH, FOLD = 127, 4, 2
GRIDS = {"as learned": (24, 24), "wide": (16, 40), "a column": (40, 8)}
DELTA_NETS: dict[str, Any] = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}
"""Of Qwen3.5, whose tower gives one vector for each image token."""
pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Pair:
    """The reference and our model with its weights, read from the folder that the reference was saved to."""

    reference: Any
    ours: Model
    folder: Path


def config_of(model_type: str) -> Any:
    """A text of three layers and a tower of three, of which two give vectors to the text's first blocks."""
    sections = {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **sections},
    }
    if model_type.endswith("_moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    if model_type.startswith("qwen3_5"):
        text |= DELTA_NETS
    if model_type == "qwen3_5_moe":
        text |= {"shared_expert_intermediate_size": 32}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [] if model_type.startswith("qwen3_5") else [0, 2],
        "patch_size": PATCH,
        "num_position_embeddings": 36,
    }
    tokens = {"image_token_id": IMAGE, "video_token_id": 126, "vision_start_token_id": 125, "vision_end_token_id": 124}
    kind: Any = transformers.CONFIG_MAPPING[model_type]
    return kind(text_config=text, vision_config=vision, **tokens)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_vl_moe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(request.param, tmp_path_factory.mktemp(request.param))


def pair_of(model_type: str, folder: Path) -> Pair:
    config = config_of(model_type)
    config._attn_implementation = "eager"
    reference = getattr(transformers, FAMILIES[model_type].architecture)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn(parameter.shape, generator=generator))
    reference.save_pretrained(folder)
    ours = l4spec.build(import_config(config.to_dict()).spec, dtype="fp32", seed=None)
    l4spec.load_checkpoint(ours, folder)
    return Pair(reference, ours, folder)


@pytest.mark.parametrize("sides", GRIDS.values(), ids=GRIDS)
@torch.no_grad()
def test_images_of_qwen3_5_equal_the_reference(hybrid: Pair, sides: tuple[int, int]) -> None:
    number = sides[0] * sides[1] // (PATCH * FOLD) ** 2
    ids, images = prompt(number, (0, 3), (0, number + 9)), pixels(2, sides)
    given = as_processed(images)
    theirs = hybrid.reference.model.visual(given["pixel_values"], given["image_grid_thw"], return_dict=True)
    assert relative(hybrid.ours.encode_images(images).flatten(0, 1), theirs.pooler_output) < BOUND
    expected = expected_logits(hybrid, ids, images)
    assert relative(hybrid.ours(ids, pixel_values=images), expected) < AMPLIFIED * BOUND
    cache = hybrid.ours.new_cache(1, ids.shape[1])
    parts = [hybrid.ours(ids[:, :-4], pixel_values=images, cache=cache)]
    parts += [hybrid.ours(token, cache=cache) for token in torch.split(ids[:, -4:], 1, dim=1)]
    assert relative(torch.cat(parts, dim=1), expected) < AMPLIFIED * BOUND


@torch.no_grad()
def test_a_checkpoint_of_qwen3_5_comes_back_with_its_tower(hybrid: Pair, tmp_path: Path) -> None:
    l4spec.save_checkpoint(hybrid.ours, tmp_path)
    kind = type(hybrid.reference)
    again, loading = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(loading.values()), loading
    theirs = hybrid.reference.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.state_dict().items())


def pixels(number: int, sides: tuple[int, int] = (24, 24)) -> Tensor:
    return torch.randn(number, 3, *sides, generator=torch.Generator().manual_seed(1))


def as_processed(images: Tensor) -> dict[str, Tensor]:
    """Images as Qwen's processor lays them: rows of patches, four neighbours in a row, every image twice in time."""
    number, channels, height, width = images.shape
    rows, columns = height // PATCH, width // PATCH
    cut = images.reshape(number, 1, channels, rows // FOLD, FOLD, PATCH, columns // FOLD, FOLD, PATCH)
    twice = cut.expand(-1, 2, *cut.shape[2:]).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    grid = torch.tensor([[1, rows, columns]] * number)
    return {"pixel_values": twice.reshape(number * rows * columns, -1), "image_grid_thw": grid}


def prompt(tokens_per_image: int, *starts: tuple[int, int], rows: int = 1) -> Tensor:
    """Text with places for images: (row, first token)."""
    length = max(start for _, start in starts) + tokens_per_image + 7
    ids = torch.randint(0, 120, (rows, length), generator=torch.Generator().manual_seed(2))
    for row, start in starts:
        ids[row, start : start + tokens_per_image] = IMAGE
    return ids


def expected_logits(pair: Pair, ids: Tensor, images: Tensor, **inputs: Tensor) -> Tensor:
    types = (ids == IMAGE).int()
    logits: Tensor = pair.reference(input_ids=ids, mm_token_type_ids=types, **as_processed(images), **inputs).logits
    return logits


@pytest.mark.parametrize("sides", GRIDS.values(), ids=GRIDS)
@torch.no_grad()
def test_a_tower_gives_the_vectors_of_embedding_and_blocks(pair: Pair, sides: tuple[int, int]) -> None:
    given = as_processed(pixels(2, sides))
    theirs = pair.reference.model.visual(given["pixel_values"], given["image_grid_thw"], return_dict=True)
    expected = torch.cat((theirs.pooler_output, *theirs.deepstack_features), dim=-1)
    ours = pair.ours.encode_images(pixels(2, sides))
    assert relative(ours.flatten(0, 1), expected) < BOUND


@pytest.mark.parametrize("sides", GRIDS.values(), ids=GRIDS)
@torch.no_grad()
def test_logits_around_images_equal_the_reference(pair: Pair, sides: tuple[int, int]) -> None:
    number = sides[0] * sides[1] // (PATCH * FOLD) ** 2
    ids = prompt(number, (0, 3), (0, number + 9))
    images = pixels(2, sides)
    assert relative(pair.ours(ids, pixel_values=images), expected_logits(pair, ids, images)) < BOUND


@torch.no_grad()
def test_rows_of_unequal_length_equal_the_reference(pair: Pair) -> None:
    ids, mask = prompt(9, (0, 6), (1, 20), rows=2), torch.ones(2, 36, dtype=torch.long)
    mask[0, :4] = 0
    theirs = expected_logits(pair, ids, pixels(2), attention_mask=mask)
    ours = pair.ours(ids, pixel_values=pixels(2), attention_mask=mask)
    assert relative(ours[mask.bool()], theirs[mask.bool()]) < BOUND


@torch.no_grad()
def test_a_prompt_in_chunks_that_cut_images_and_every_token_after_it_equal_the_whole(pair: Pair) -> None:
    ids = prompt(9, (0, 3), (0, 15))
    whole = expected_logits(pair, ids, pixels(2))
    vectors, cache = pair.ours.encode_images(pixels(2)).flatten(0, 1), pair.ours.new_cache(1, ids.shape[1])
    parts, used = [], 0
    for chunk in (*torch.split(ids[:, :25], 7, dim=1), *torch.split(ids[:, 25:], 1, dim=1)):
        here = int((chunk == IMAGE).sum())
        features = vectors[used : used + here] if here else None
        parts.append(pair.ours(chunk, image_features=features, cache=cache))
        used += here
    assert relative(torch.cat(parts, dim=1), whole) < BOUND


@torch.no_grad()
def test_greedy_tokens_after_images_are_those_of_whole_passes(pair: Pair) -> None:
    ids = prompt(9, (0, 3), (1, 15), rows=2)
    got = pair.ours.generate(ids, pixel_values=pixels(2), max_new_tokens=4, prefill_chunk=5)
    for _ in range(4):
        logits = expected_logits(pair, ids, pixels(2))[:, -1]
        logits[:, IMAGE] = -torch.inf
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(torch.as_tensor(got)[:, -4:], ids[:, -4:])


@torch.no_grad()
def test_packed_sequences_count_the_places_of_their_own_images(pair: Pair) -> None:
    ids = prompt(9, (0, 3), (0, 23))
    sequences = (torch.arange(ids.shape[1]) >= 18).long()[None]
    whole = pair.ours(ids, pixel_values=pixels(2), sequence_ids=sequences)
    alone = [pair.ours(ids[:, :18], pixel_values=pixels(2)[:1]), pair.ours(ids[:, 18:], pixel_values=pixels(2)[1:])]
    assert relative(whole, torch.cat(alone, dim=1)) < BOUND


@torch.no_grad()
def test_text_alone_equals_the_reference_and_plain_rope(pair: Pair) -> None:
    ids = prompt(0, (0, 20))
    plain = [f"text.parts.{name}.position.sections=null" for name in ("attention",)]
    model = l4spec.build(l4spec.load(pair.folder, [*plain, "vision=null"]), dtype="fp32", seed=None)
    model.load_state_dict({n: t for n, t in pair.ours.state_dict().items() if n.startswith("text.")})
    ours = pair.ours(ids)
    assert torch.equal(ours, model(ids))
    assert relative(ours, pair.reference(input_ids=ids).logits) < BOUND


def test_gradients_through_images_equal_the_reference(pair: Pair) -> None:
    ids = prompt(9, (0, 3), (0, 15))
    pair.ours.zero_grad()
    pair.reference.zero_grad()
    torch.autograd.backward(pair.ours(ids, pixel_values=pixels(2)).square().mean())
    torch.autograd.backward(expected_logits(pair, ids, pixels(2)).square().mean())
    theirs = pair.reference.model.visual
    ours = dict(pair.ours.named_parameters())
    compared = {
        "vision.patch_embedding.proj.weight": theirs.patch_embed.proj.weight.grad.flatten(1),
        "vision.position.weight": theirs.pos_embed.weight.grad,
        "vision.layers.0.attention.k_proj.weight": theirs.blocks[0].attn.qkv.weight.grad.chunk(3)[1],
        "vision.adapter.norm.weight": theirs.merger.norm.weight.grad,
        "vision.deepstack.layers.1.adapter.fc.weight": theirs.deepstack_merger_list[1].linear_fc1.weight.grad,
        "vision.deepstack.layers.0.projector.proj.bias": theirs.deepstack_merger_list[0].linear_fc2.bias.grad,
        "text.embedding.weight": pair.reference.model.language_model.embed_tokens.weight.grad,
    }
    for name, gradient in compared.items():
        own = ours[name].grad
        assert own is not None
        assert float(gradient.abs().max()) > 0
        assert relative(own, gradient) < GRADIENT_BOUND, name


@torch.no_grad()
def test_what_is_saved_is_read_by_transformers_with_its_tower(pair: Pair, tmp_path: Path) -> None:
    l4spec.save_checkpoint(pair.ours, tmp_path)
    kind = type(pair.reference)
    again, loading = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(loading.values()), loading
    theirs = pair.reference.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.state_dict().items())


def test_flops_of_a_tower_are_those_that_torch_counts_of_the_reference(pair: Pair) -> None:
    given = as_processed(pixels(1))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pair.reference.model.visual(given["pixel_values"], given["image_grid_thw"])
    plan = planners.plan(pair.ours.graph, gpus="1xH100", context=64)
    assert plan.flops.vision_per_tile == counter.get_total_flops()


def test_images_that_a_tower_cannot_take_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="multiples of 8, found 24 x 20"):
        pair.ours.encode_images(pixels(1, (24, 20)))
    cache, ids = pair.ours.new_cache(1, 64), prompt(9, (0, 3))
    pair.ours(ids, pixel_values=pixels(1), cache=cache)
    with pytest.raises(ValueError, match="give them equal sides"):
        pair.ours(prompt(8, (0, 3)), pixel_values=pixels(1, (16, 32)), cache=cache)
    with pytest.raises(UserError, match="a compiled step turns by positions"):
        CompiledStep(pair.ours, backend="eager")(ids[:, :1], cache=cache)


def test_files_of_images_and_clips_are_refused_for_images_of_any_sides(pair: Pair) -> None:
    vision = pair.ours.graph.model.spec.vision
    assert vision is not None
    with pytest.raises(UserError, match="images of any sides, which l4spec does not cut yet"):
        image_prompt([torch.zeros(3, 8, 8, dtype=torch.uint8)], vision, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="patches cover 2 frames of a video"):
        planners.plan(pair.ours.graph, gpus="1xH100", context=64, video=1.0, fps=1.0)


def test_a_later_stage_takes_no_image_vectors(pair: Pair) -> None:
    with pytest.raises(UserError, match="pp=3 parts the vision tower from block 1 of the text"):
        planners.plan(pair.ours.graph, gpus="3xH100", context=64, pp=3)
