"""Random configs of every family: a transformers config object comes back field for field, and means the same."""

import json
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.huggingface import FAMILIES, export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import resolve
from tests.huggingface.drawn_configs import families
from tests.huggingface.drawn_fields import Config

READ_AND_NOT_KEPT = (
    ("head_dim", None),
    ("rope_interleave", True),
    ("full_attention_interval", 4),
    ("sliding_window_pattern", 6),
    ("global_head_dim", 512),
    ("num_global_key_value_heads", None),
    ("first_k_dense_replace", 1),
)
"""Fields of older configs that transformers turns into others."""
TEXT_FAMILIES = [
    model_type
    for model_type, family in FAMILIES.items()
    if model_type in transformers.CONFIG_MAPPING and model_type != "llama4" and not family.naming.of_towers
]
GEMMA: Config = {
    "hidden_size": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
    "max_position_embeddings": 1025,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "dtype": "bfloat16",
    "sliding_window": 1,
    "query_pre_attn_scalar": 1,
}
"""Fields of Gemma 3 with a rotation for each kind of layer."""
configs = st.sampled_from(TEXT_FAMILIES).flatmap(lambda kind: families(kind).map(lambda model_spec: (kind, model_spec)))


def built(model_type: str, fields: Config) -> Config:
    """What transformers makes of the fields, as plain JSON."""
    fields = {key: value for key, value in fields.items() if key != "head_dim" or value is not None}
    return plain(transformers.CONFIG_MAPPING[model_type](**json.loads(json.dumps(fields))))


def plain(config: Any) -> Config:
    """A transformers config as JSON."""
    config_data: Config = json.loads(json.dumps(config.to_dict()))
    return config_data


def assert_comes_back(config: Config) -> None:
    """Import, YAML, export and transformers again give the same config."""
    imported = import_config(config)
    document = read_text(imported.yaml, "imported.yaml")
    assert document.data == imported.data
    exported = export_config(parse_spec(document))
    again = plain(transformers.CONFIG_MAPPING[config["model_type"]](**exported))
    assert {**again, "architectures": None} == {**config, "architectures": None}
    assert not differences(resolve(imported.spec), resolve(import_config(exported).spec))


@given(configs)
@settings(max_examples=100)
def test_a_config_comes_back_field_for_field(drawn: tuple[str, Config]) -> None:
    assert_comes_back(built(*drawn))


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_a_rotation_that_no_layer_has_comes_back(kind: str) -> None:
    assert_comes_back(built("gemma3_text", GEMMA | {"layer_types": [kind]}))


@given(families("gemma4_text"))
@settings(max_examples=10)
def test_so_does_that_of_gemma_4_with_global_layers_alone(fields: Config) -> None:
    assert_comes_back(built("gemma4_text", fields | {"layer_types": ["full_attention"] * fields["num_hidden_layers"]}))


def test_a_carried_rotation_gives_way_to_the_one_of_the_spec() -> None:
    imported = import_config(built("gemma3_text", GEMMA | {"layer_types": ["full_attention"]}))
    assert "theta: 10000," in imported.yaml
    text = imported.yaml.replace("theta: 10000,", "theta: 77777,")
    exported = export_config(parse_spec(read_text(text, "changed.yaml")))
    assert exported["rope_parameters"]["full_attention"]["rope_theta"] == 77777


@given(families("llama4_text"), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1.0, 0.5, 0.25]))
@settings(max_examples=25)
def test_a_config_with_vision_comes_back_field_for_field(text: Config, heads: int, side: int, ratio: float) -> None:
    width, fold = heads * 8, round(1 / ratio)
    vision = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": side,
        "intermediate_size": width * fold**2,
        "image_size": 14 * fold * side,
        "patch_size": 14,
        "pixel_shuffle_ratio": ratio,
        **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), width),
        "dtype": "float32",
    }
    text = {key: value for key, value in text.items() if value is not None or key != "head_dim"}
    tied = text["tie_word_embeddings"]
    config = transformers.Llama4Config(
        text_config=json.loads(json.dumps(text)), vision_config=vision, dtype=text["dtype"], tie_word_embeddings=tied
    )
    assert_comes_back(plain(config))


@given(configs)
@settings(max_examples=40)
def test_a_config_without_its_origin_is_exported_to_one_that_means_the_same(drawn: tuple[str, Config]) -> None:
    imported = import_config(built(*drawn))
    spec = imported.spec.model_copy(update={"huggingface": None})
    assert not differences(resolve(spec), resolve(import_config(export_config(spec)).spec))


@pytest.mark.parametrize("model_type", TEXT_FAMILIES)
def test_the_assumed_defaults_are_those_of_transformers(model_type: str) -> None:
    config = transformers.CONFIG_MAPPING[model_type]
    for name, value in FAMILIES[model_type].defaults.items():
        if name in ("rope_theta", "rope_local_base_freq"):
            usual: Any = config.default_theta
            assert value in (usual.values() if isinstance(usual, dict) else (usual,))
        elif hasattr(config, name):
            assert getattr(config, name) == value, name
        else:
            assert (name, value) in READ_AND_NOT_KEPT, name  # read, and not kept
