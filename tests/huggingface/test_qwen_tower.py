"""The tower of Qwen3-VL in configs: read, written back, refused where it says something else."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers

import l4spec
from l4spec.errors import SpecError
from l4spec.huggingface import FAMILIES, export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.layers.attention.positions import Rope
from l4spec.layers.gqa.spec import GQASpec
from l4spec.spec.resolve import resolve

Config = dict[str, Any]
TEXT: Config = {
    "model_type": "qwen3_vl_text",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "rope_theta": 5000000,
}
VISION: Config = {
    "model_type": "qwen3_vl",
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
}
QWEN3_VL_2B: Config = {
    "model_type": "qwen3_vl",
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": VISION,
    "tie_word_embeddings": True,
}
"""Qwen/Qwen3-VL-2B-Instruct: 2,127,532,032 parameters, of which 406,957,056 in its tower and mergers."""
pytestmark = pytest.mark.filterwarnings("ignore")


def with_vision(**fields: Any) -> Config:
    return {**QWEN3_VL_2B, "vision_config": {**VISION, **fields}}


def test_a_tower_and_its_mergers_have_the_parameters_of_the_release() -> None:
    graph = l4spec.compile(import_config(QWEN3_VL_2B).spec)
    numbers = {node.id: sum(p.numel for p in node.declaration.parameters) for node in graph.nodes}
    assert sum(numbers.values()) == 2_127_532_032
    assert sum(number for name, number in numbers.items() if name.startswith("vision.")) == 406_957_056


@pytest.mark.parametrize("sections", [[24, 20, 20], [11, 11, 10], [0, 30, 1]])
@pytest.mark.parametrize("head_dim", [128, 64, 16])
def test_sections_are_laid_over_a_head_as_transformers_lays_them(sections: list[int], head_dim: int) -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, "mrope_interleaved": True}
    text = {key: value for key, value in TEXT.items() if key != "rope_theta"}
    config = {**QWEN3_VL_2B, "text_config": {**text, "head_dim": head_dim, "rope_parameters": parameters}}
    reference = transformers.CONFIG_MAPPING["qwen3_vl"](**deepcopy(config)).text_config
    rotary: Any = transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding(reference)
    axis_of_pair = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, head_dim // 2).clone()
    theirs = rotary.recomposition_frequencies(axis_of_pair)[0, 0, : head_dim // 2]
    position = import_config(config).data["text"]["parts"]["attention"]["position"]
    spec = import_config(config).spec.text.parts["attention"]
    assert position["sections"]["interleaved"] is True
    assert isinstance(spec, GQASpec)
    assert isinstance(spec.position, Rope)
    assert spec.position.sections is not None
    assert list(spec.position.sections.axes()) == theirs.int().tolist()


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_a_config_of_transformers_comes_back_with_its_tower(model_type: str) -> None:
    kind: Any = transformers.CONFIG_MAPPING[model_type]
    config = kind(vision_config={"out_hidden_size": 4096, "depth": 26})
    config.text_config.hidden_size = 4096
    given = {**config.to_dict(), "architectures": [FAMILIES[model_type].architecture]}
    imported = import_config(given)
    exported = export_config(imported.spec)
    again = kind(**exported)
    assert again.vision_config.to_dict() == config.vision_config.to_dict()
    assert not differences(resolve(imported.spec), resolve(import_config(exported).spec))


QWEN3_5_27B: Config = {
    "model_type": "qwen3_5",
    "text_config": {
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 64,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "linear_num_value_heads": 48,
        "vocab_size": 248320,
    },
    "vision_config": {"model_type": "qwen3_5", "out_hidden_size": 5120, "deepstack_visual_indexes": []},
    "tie_word_embeddings": False,
}
"""Qwen/Qwen3.5-27B: 27,356,728,560 parameters, as transformers builds it on the meta device."""


def test_a_tower_without_vectors_for_blocks_has_the_parameters_of_the_release() -> None:
    graph = l4spec.compile(import_config(QWEN3_5_27B).spec)
    assert sum(p.numel for _, p in graph.parameters()) == 27_356_728_560
    assert graph.model.vision is not None
    assert graph.model.vision.deepstack is None
    vision = {**QWEN3_5_27B["vision_config"], "deepstack_visual_indexes": [8]}
    with pytest.raises(SpecError, match="the family's text has no place for them"):
        import_config({**QWEN3_5_27B, "vision_config": vision})


def test_a_config_without_a_tower_is_its_language_model_with_a_note() -> None:
    imported = import_config({key: value for key, value in QWEN3_VL_2B.items() if key != "vision_config"})
    assert imported.spec.vision is None
    assert any("the language model alone" in note for note in imported.notes)


def test_the_size_of_images_that_plans_count_is_no_field_of_a_config() -> None:
    imported = import_config(QWEN3_VL_2B)
    assert imported.spec.vision is not None
    assert imported.spec.vision.image_size == 768
    assert any("768 x 768" in note for note in imported.notes)
    vision = imported.spec.vision.model_copy(update={"image_size": 512})
    assert export_config(imported.spec.model_copy(update={"vision": vision})) == export_config(imported.spec)


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (with_vision(num_position_embeddings=2300), "vision_config.num_position_embeddings"),
        (with_vision(deepstack_visual_indexes=[11, 5]), "vision_config.deepstack_visual_indexes"),
        (with_vision(deepstack_visual_indexes=[24]), "vision_config.deepstack_visual_indexes"),
        (with_vision(out_hidden_size=1024), "vision_config.out_hidden_size"),
        (with_vision(num_heads=48), "vision_config.num_heads"),
        (with_vision(hidden_act="relu"), "vision_config.hidden_act"),
        (with_vision(twist=1), "vision_config.twist"),
        (with_vision(model_type="clip"), "vision_config.model_type"),
        ({**QWEN3_VL_2B, "text_config": {**TEXT, "rope_scaling": {"mrope_interleaved": False}}}, "text_config"),
        ({**QWEN3_VL_2B, "text_config": {**TEXT, "rope_scaling": {"mrope_section": [1, 2]}}}, "text_config"),
    ],
)
def test_what_a_tower_cannot_be_is_refused_by_name(config: Config, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_config(config)
    assert any(problem.path.startswith(path) for problem in caught.value.problems)
