"""Real releases: their configs import to the shipped specs, and come back as they were."""

import copy
from typing import Any

import pytest
import transformers

import l4spec
from l4spec.huggingface import export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import resolve
from tests.huggingface.releases import MISTRAL_7B, RELEASES

ALL = {**RELEASES, "mistral-7b": MISTRAL_7B}
SPELLED_OUT = {
    *("head_dim", "layer_types", "no_rope_layers", "moe_layers", "rope_scaling", "tie_word_embeddings"),
    *("router_jitter_noise", "attention_bias", "mlp_bias", "rope_interleave", "sliding_window", "decoder_sparse_step"),
    *("mlp_only_layers", "use_qk_norm", "model_type"),
}
"""Fields that an export writes out although a config may leave them to transformers."""


def assert_contains(config: dict[str, Any], original: dict[str, Any], path: str = "") -> None:
    """Every field of `original` is in `config` with its value, and nothing else but what is spelled out."""
    for key, value in original.items():
        assert key in config, f"{path}{key} is lost"
        if isinstance(value, dict):
            assert_contains(config[key], value, f"{path}{key}.")
        else:
            assert config[key] == value, f"{path}{key}"
            assert type(config[key]) is type(value) or not isinstance(value, bool | str | list), f"{path}{key}"
    assert set(config) - set(original) <= SPELLED_OUT


@pytest.mark.parametrize("name", RELEASES)
def test_the_config_of_a_release_means_the_shipped_spec(name: str) -> None:
    imported, shipped = resolve(import_config(RELEASES[name]).spec), resolve(l4spec.load(name))
    unexplained = [difference for difference in differences(imported, shipped) if difference[0] != "text.dtype"]
    assert not unexplained


@pytest.mark.parametrize("name", ALL)
def test_the_config_of_a_release_comes_back_as_it_was(name: str) -> None:
    original = copy.deepcopy(ALL[name])
    assert_contains(export_config(import_config(ALL[name]).spec), original)
    assert ALL[name] == original, "the import must not touch what it was given"


@pytest.mark.parametrize("name", ALL)
def test_transformers_reads_an_exported_config_as_the_original(name: str) -> None:
    exported = export_config(import_config(ALL[name]).spec)
    config_class = transformers.CONFIG_MAPPING[ALL[name]["model_type"]]
    original, back = config_class(**copy.deepcopy(ALL[name])).to_dict(), config_class(**exported).to_dict()
    if name == "llama-guard-4-12b":  # a null chunk size makes chunks of everything: transformers needs it said in full
        original["text_config"]["layer_types"] = ["full_attention"] * 48
    assert back == original


@pytest.mark.parametrize("name", ALL)
def test_the_yaml_of_an_import_says_what_its_data_say(name: str) -> None:
    imported = import_config(ALL[name])
    document = read_text(imported.yaml, "imported.yaml")
    assert document.data == imported.data
    assert parse_spec(document) == imported.spec
    assert imported.yaml.startswith("# ")


@pytest.mark.parametrize("name", ["scout", "maverick", "compare/deepseek-v3", "compare/gemma-2-27b"])
def test_imported_layers_are_written_as_their_pattern(name: str) -> None:
    written = import_config(RELEASES[name]).data["text"]["layers"]
    assert len(written) == (2 if name == "compare/deepseek-v3" else 1)


def test_scout_counts_its_layers_in_comments() -> None:
    yaml = import_config(RELEASES["scout"]).yaml
    for line in ("    local:  # 36 layers", "    global:  # 12 layers", "vision:  # 144 tokens per tile"):
        assert line in yaml.splitlines()


@pytest.mark.parametrize("name", ["scout", "mobilellm-r1-950m", "compare/phi-4", "compare/mistral-nemo-2407"])
def test_a_shipped_spec_without_origin_finds_its_family(name: str) -> None:
    families = {"scout": "llama4", "mobilellm-r1-950m": "llama4_text", "compare/phi-4": "llama"}
    assert export_config(l4spec.load(name))["model_type"] == families.get(name, "mistral")


def test_the_new_and_the_old_spelling_of_rotary_positions_mean_the_same() -> None:
    old = RELEASES["compare/llama-3.1-8b"]
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    imported = import_config(new)
    assert not differences(resolve(imported.spec), resolve(import_config(old).spec))
    assert export_config(imported.spec)["rope_parameters"] == new["rope_parameters"]
    assert "rope_theta" not in export_config(imported.spec)
