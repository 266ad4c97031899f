"""Qwen2.5-VL in configs: flat as published or nested, written back, refused where it says something else."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers

import l4spec
from l4spec.errors import SpecError
from l4spec.huggingface import export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.spec.resolve import resolve

Config = dict[str, Any]
VISION: Config = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
TEXT: Config = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
FLAT: Config = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    **TEXT,
    "tie_word_embeddings": True,
    "image_token_id": 151655,
    "vision_config": VISION,
}
"""Qwen/Qwen2.5-VL-3B-Instruct, laid out as published: the text's fields beside the tower's section."""
NESTED: Config = {key: value for key, value in FLAT.items() if key not in TEXT} | {
    "text_config": {"model_type": "qwen2_5_vl_text", **TEXT}
}
LARGEST: Config = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "vision_config": {**VISION, "intermediate_size": 3456, "out_hidden_size": 8192},
}
pytestmark = pytest.mark.filterwarnings("ignore")


def with_vision(**fields: Any) -> Config:
    return {**FLAT, "vision_config": {**VISION, **fields}}


@pytest.mark.parametrize(
    ("config", "number"), [(FLAT, 3_754_622_976), ({**FLAT, **LARGEST}, 73_410_777_344)], ids=["3B", "72B"]
)
def test_a_release_has_as_many_parameters_as_the_model_that_transformers_builds(config: Config, number: int) -> None:
    graph = l4spec.compile(import_config(config).spec)
    with torch.device("meta"):
        kind: Any = transformers.CONFIG_MAPPING["qwen2_5_vl"]
        model: Any = transformers.Qwen2_5_VLForConditionalGeneration
        theirs = model(kind(**deepcopy(config)))
    assert sum(p.numel for _, p in graph.parameters()) == number
    assert sum(p.numel() for p in theirs.parameters()) == number


def test_flat_and_nested_configs_are_the_same_model_and_come_back() -> None:
    flat, nested, both = (import_config(config).spec for config in (FLAT, NESTED, {**NESTED, **TEXT}))
    assert not differences(resolve(flat), resolve(nested))
    assert not differences(resolve(flat), resolve(both))
    exported = export_config(flat)
    assert exported["image_token_id"] == 151655
    assert not differences(resolve(flat), resolve(import_config(exported).spec))


def test_a_config_of_transformers_comes_back_with_its_windows() -> None:
    kind: Any = transformers.CONFIG_MAPPING["qwen2_5_vl"]
    config = kind(vision_config={"out_hidden_size": 8192, "fullatt_block_indexes": [3, 4], "window_size": 60})
    imported = import_config({**config.to_dict(), "architectures": ["Qwen2_5_VLForConditionalGeneration"]})
    again = import_config(kind(**export_config(imported.spec)).to_dict())
    assert not differences(resolve(imported.spec), resolve(again.spec))


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (with_vision(window_size=27), "vision_config.window_size"),
        (with_vision(out_hidden_size=1024), "vision_config.out_hidden_size"),
        (with_vision(hidden_act="gelu"), "vision_config.hidden_act"),
        (with_vision(in_chans=4), "vision_config.in_chans"),
        (with_vision(twist=1), "vision_config.twist"),
        ({**FLAT, "twist": 1}, "twist"),
        ({**NESTED, "hidden_size": 1024}, "hidden_size"),
        ({**FLAT, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 20]}}, "rope_scaling"),
        ({**FLAT, "rope_scaling": {"mrope_section": [16, 24, 24], "mrope_interleaved": True}}, "rope_scaling"),
    ],
)
def test_what_the_family_cannot_be_is_refused_by_name(config: Config, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_config(config)
    assert any(problem.path.startswith(path) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vision.tower.class_token=last"], "a class token lies in no grid"),
        (["vision.tower.parts.window.sinks=true"], "takes no logit_softcap, sinks or v_head_dim"),
        (["text.parts.attention.mask={kind: grid_window, size: 8}"], "text tokens lie in no grid"),
    ],
)
def test_windows_of_a_grid_are_refused_where_there_is_none(overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        l4spec.load("compare/qwen2.5-vl-7b", overrides)


def test_qwen2_vl_is_refused_by_its_activation() -> None:
    with pytest.raises(SpecError, match="qwen2_vl is not read: a tower with the activation quick_gelu"):
        import_config({**FLAT, "model_type": "qwen2_vl"})
