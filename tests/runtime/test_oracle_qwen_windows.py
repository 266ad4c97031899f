"""Qwen2.5-VL with images equals transformers: windows of a grid that no side of an image has to be a multiple of.

Bounds, pixels and prompts are those of Qwen3-VL (tests.runtime.test_oracle_qwen_vl), whose sums are as long.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import l4spec
import planners
from l4spec.huggingface import import_config
from tests.runtime.test_oracle_qwen_vl import (
    BOUND,
    FOLD,
    GRADIENT_BOUND,
    IMAGE,
    PATCH,
    Pair,
    as_processed,
    expected_logits,
    pixels,
    prompt,
)
from tests.runtime.test_oracle_text import relative

WINDOW = 4
GRIDS = {"whole windows": (32, 16), "one window": (16, 16), "edges": (24, 40), "edges below": (40, 16), "less": (8, 16)}
"""Sides in pixels: a window is 16, a folded patch 8."""
pytestmark = pytest.mark.filterwarnings("ignore")


def config_of() -> Any:
    text: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 1, 3]},
    }
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": PATCH,
        "window_size": WINDOW * PATCH,
        "fullatt_block_indexes": [2],
    }
    tokens = {"image_token_id": IMAGE, "video_token_id": 126, "vision_start_token_id": 125, "vision_end_token_id": 124}
    kind: Any = transformers.CONFIG_MAPPING["qwen2_5_vl"]
    return kind(text_config=text, vision_config=vision, **tokens)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config, folder = config_of(), tmp_path_factory.mktemp("qwen2_5_vl")
    config._attn_implementation = "eager"
    kind: Any = transformers.Qwen2_5_VLForConditionalGeneration
    reference = kind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            is_norm = ("norm" in name or "ln_q" in name) and name.endswith("weight")
            parameter.copy_((1.0 if is_norm else 0.0) + 0.2 * torch.randn(parameter.shape, generator=generator))
    reference.save_pretrained(folder)
    ours = l4spec.build(import_config(config.to_dict()).spec, dtype="fp32", seed=None)
    l4spec.load_checkpoint(ours, folder)
    return Pair(reference, ours, folder)


@pytest.mark.parametrize("sides", GRIDS.values(), ids=GRIDS)
@torch.no_grad()
def test_windows_of_images_of_any_sides_equal_the_reference(pair: Pair, sides: tuple[int, int]) -> None:
    number = sides[0] * sides[1] // (PATCH * FOLD) ** 2
    ids, images = prompt(number, (0, 3), (0, number + 9)), pixels(2, sides)
    given = as_processed(images)
    theirs = pair.reference.model.visual(given["pixel_values"], given["image_grid_thw"], return_dict=True)
    assert relative(pair.ours.encode_images(images).flatten(0, 1), theirs.pooler_output) < BOUND
    expected = expected_logits(pair, ids, images)
    assert relative(pair.ours(ids, pixel_values=images), expected) < BOUND
    cache = pair.ours.new_cache(1, ids.shape[1])
    parts = [pair.ours(ids[:, :-4], pixel_values=images, cache=cache)]
    parts += [pair.ours(token, cache=cache) for token in torch.split(ids[:, -4:], 1, dim=1)]
    assert relative(torch.cat(parts, dim=1), expected) < BOUND


def test_gradients_through_windows_equal_the_reference(pair: Pair) -> None:
    ids = prompt(15, (0, 3), (0, 22))
    pair.ours.zero_grad()
    pair.reference.zero_grad()
    torch.autograd.backward(pair.ours(ids, pixel_values=pixels(2, (24, 40))).square().mean())
    torch.autograd.backward(expected_logits(pair, ids, pixels(2, (24, 40))).square().mean())
    theirs, ours = pair.reference.model.visual, dict(pair.ours.named_parameters())
    compared = {
        "vision.patch_embedding.proj.weight": theirs.patch_embed.proj.weight.grad.flatten(1),
        "vision.layers.0.attention.k_proj.weight": theirs.blocks[0].attn.qkv.weight.grad.chunk(3)[1],
        "vision.layers.1.ffn.gate_proj.bias": theirs.blocks[1].mlp.gate_proj.bias.grad,
        "vision.layers.2.attention.v_proj.bias": theirs.blocks[2].attn.qkv.bias.grad.chunk(3)[2],
        "vision.adapter.norm.weight": theirs.merger.ln_q.weight.grad,
        "vision.projector.proj.bias": theirs.merger.mlp[2].bias.grad,
        "text.embedding.weight": pair.reference.model.language_model.embed_tokens.weight.grad,
    }
    for name, gradient in compared.items():
        own = ours[name].grad
        assert own is not None
        assert float(gradient.abs().max()) > 0
        assert relative(own, gradient) < GRADIENT_BOUND, name


@torch.no_grad()
def test_what_is_saved_is_read_by_transformers_with_its_windows(pair: Pair, tmp_path: Path) -> None:
    l4spec.save_checkpoint(pair.ours, tmp_path)
    kind = type(pair.reference)
    again, loading = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(loading.values()), loading
    theirs = pair.reference.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("side", [8, 16, 24, 32, 40])
def test_flops_of_windows_are_those_that_torch_counts_of_the_reference(pair: Pair, side: int) -> None:
    given = as_processed(pixels(1, (side, side)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pair.reference.model.visual(given["pixel_values"], given["image_grid_thw"])
    spec = l4spec.load(pair.folder, [f"vision.image_size={side}"])
    plan = planners.plan(spec, gpus="1xH100", context=64)
    assert plan.flops.vision_per_tile == counter.get_total_flops()
