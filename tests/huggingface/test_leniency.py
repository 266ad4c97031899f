"""What an import lets pass: metadata, switches that are off, what transformers writes; and what it notes."""

import json
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.errors import SpecError
from l4spec.huggingface import export_config, import_config, import_file
from l4spec.huggingface.passthrough_fields import OFF
from l4spec.huggingface.semantic_diff import differences
from l4spec.spec.resolve import resolve
from tests.huggingface.releases import DEEPSEEK_V3, LLAMA_3_1_8B, MISTRAL_7B, QWEN3_235B_A22B, SCOUT

INCOMPLETE = {"num_experts_per_tok": 8, "rms_norm_eps": 1e-06}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_what_a_config_leaves_out_is_assumed_aloud(name: str) -> None:
    whole = import_config(QWEN3_235B_A22B)
    assert not any("not in the config" in note for note in whole.notes)
    imported = import_config({key: value for key, value in QWEN3_235B_A22B.items() if key != name})
    note = f"not in the config, and taken as transformers assumes: {name} {INCOMPLETE[name]}"
    assert note in imported.notes
    assert note in imported.yaml


METADATA: dict[str, Any] = {
    "unsloth_version": "2026.4.5",
    "unsloth_fixed": True,
    "auto_map": {"AutoConfig": "configuration_x.XConfig"},
    "_commit_hash": "0e9e39f2",
    "peft_type": "LORA",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "task_specific_params": None,
    "diversity_penalty": 0.0,
    "vision_token_id": 7,
    "sliding_window": None,
    "resid_pdrop": 0.0,
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_never_stands_in_the_way(name: str) -> None:
    base, with_metadata = import_config(LLAMA_3_1_8B), import_config({**LLAMA_3_1_8B, name: METADATA[name]})
    assert not differences(resolve(base.spec), resolve(with_metadata.spec))


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("release", [LLAMA_3_1_8B, MISTRAL_7B], ids=["llama", "mistral"])
def test_a_switch_of_another_family_may_be_off_and_may_not_be_on(release: dict[str, Any], name: str) -> None:
    off = import_config({**release, name: OFF[name]})
    assert not differences(resolve(import_config(release).spec), resolve(off.spec))
    on = True if OFF[name] is False else OFF[name] + 1
    if name in ("attention_bias", "mlp_bias") and release is LLAMA_3_1_8B:
        return  # Llama has these switches itself
    with pytest.raises(SpecError, match=name):
        import_config({**release, name: on})


@pytest.mark.parametrize(
    ("release", "name", "own", "other"),
    [
        (QWEN3_235B_A22B, "use_qk_norm", True, False),
        (DEEPSEEK_V3, "scoring_func", "sigmoid", "softmax"),
        (DEEPSEEK_V3, "topk_method", "noaux_tc", "greedy"),
    ],
)
def test_a_field_may_say_what_its_family_always_is_and_nothing_else(
    release: dict[str, Any], name: str, own: Any, other: Any
) -> None:
    import_config({**release, name: own})
    with pytest.raises(SpecError, match=name):
        import_config({**release, name: other})


def test_a_private_field_must_agree_with_the_public_one_that_it_repeats() -> None:
    vision = SCOUT["vision_config"]
    import_config({**SCOUT, "vision_config": {**vision, "_vision_feature_layer": -1, "vision_feature_layer": -1}})
    with pytest.raises(SpecError, match="_vision_feature_layer"):
        import_config({**SCOUT, "vision_config": {**vision, "_vision_feature_layer": -2, "vision_feature_layer": -1}})


@pytest.mark.parametrize("value", [4, 1, True])
def test_a_flag_may_be_a_number_and_counts_as_python_counts_it(value: int) -> None:
    text = {**SCOUT["text_config"], "attn_temperature_tuning": value}
    result = import_config({**SCOUT, "text_config": text}).data["text"]["parts"]["global"]
    assert "temperature" in result
    with pytest.raises(SpecError, match="attn_temperature_tuning"):
        import_config({**SCOUT, "text_config": {**text, "attn_temperature_tuning": "on"}})


def test_an_mscale_of_zero_is_one_that_is_not_set() -> None:
    rope = {key: value for key, value in DEEPSEEK_V3["rope_scaling"].items() if key != "mscale_all_dim"}
    unset, zero = ({**DEEPSEEK_V3, "rope_scaling": {**rope, **more}} for more in ({}, {"mscale_all_dim": 0.0}))
    assert not differences(resolve(import_config(unset).spec), resolve(import_config(zero).spec))


def test_yarn_makes_the_limit_of_pre_training_longer() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = {**QWEN3_235B_A22B, "max_position_embeddings": 40960, "rope_scaling": yarn}
    imported = import_config(config)
    assert imported.spec.text.max_seq_len == 131072
    assert export_config(imported.spec)["max_position_embeddings"] == 40960
    assert import_config(DEEPSEEK_V3).spec.text.max_seq_len == 163840


REFUSED_HEADS = {
    "LlamaForSequenceClassification": "classification or reward",
    "Qwen2ForRewardModel": "reward",
    "MistralModel": "no lm_head",
    "LlamaForCausalLMEagle3": "draft",
    "EagleLlamaForCausalLM": "draft",
    "DeepSeekMTPModel": "draft",
    "Llama4ForSomethingElse": "no class",
}


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_a_class_without_a_language_models_head_is_refused_by_name(name: str) -> None:
    config = {**LLAMA_3_1_8B, "architectures": [name]}
    with pytest.raises(SpecError, match=REFUSED_HEADS[name]) as caught:
        import_config(config)
    assert name in str(caught.value)
    assert import_config(config, ignore=["architectures"]).notes


@pytest.mark.parametrize("classes", [None, [], ["LlamaForCausalLM"], ["KimiK25ForConditionalGeneration"]])
def test_a_language_model_may_name_any_class_of_one_or_none(classes: Any) -> None:
    assert (
        import_config({**LLAMA_3_1_8B, "architectures": classes}).spec
        == import_config({**LLAMA_3_1_8B, "architectures": classes}).spec
    )


def test_a_missing_field_brings_no_problem_of_a_field_that_is_measured_by_it() -> None:
    config = {key: value for key, value in DEEPSEEK_V3.items() if key != "num_attention_heads"}
    with pytest.raises(SpecError) as caught:
        import_config(config)
    assert [problem.path for problem in caught.value.problems] == ["num_attention_heads"]


def test_an_ignored_field_is_read_as_if_it_were_not_there_and_the_result_says_so() -> None:
    imported = import_config({**LLAMA_3_1_8B, "twist": 1}, ignore=["twist"])
    assert not differences(resolve(imported.spec), resolve(import_config(LLAMA_3_1_8B).spec))
    assert "twist" in imported.notes[0]
    assert "twist" in imported.yaml
    with pytest.raises(SpecError, match="no such field"):
        import_config(LLAMA_3_1_8B, ignore=["twist"])


def test_llama_4_without_its_vision_is_the_language_model_alone_with_a_note() -> None:
    imported = import_config({key: value for key, value in SCOUT.items() if key != "vision_config"})
    assert imported.spec.vision is None
    assert "language model alone" in imported.notes[0]
    assert export_config(imported.spec)["model_type"] == "llama4"


def test_a_config_in_the_cache_of_hugging_face_is_called_as_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "0e9e39f2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    assert import_file(folder).spec.name == "Llama-3.1-8B"


def test_a_config_and_the_folder_of_one_are_read_wherever_a_spec_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    shipped = resolve(l4spec.load("compare/llama-3.1-8b"))
    for path in (tmp_path, tmp_path / "config.json"):
        assert not differences(resolve(l4spec.load(path)), shipped)
        assert l4spec.load(path, ["text.hidden_size=2048"]).text.hidden_size == 2048
