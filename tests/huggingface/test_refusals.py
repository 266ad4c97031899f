"""What an import refuses: by name, all at once, and without a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.errors import SpecError, UserError
from l4spec.huggingface import FAMILIES, export_config, import_config, import_file
from l4spec.huggingface.families.refused import REFUSED
from tests.huggingface.releases import (
    DEEPSEEK_V3,
    GEMMA_2_27B,
    LLAMA_3_1_8B,
    MISTRAL_7B,
    MIXTRAL_8X7B,
    QWEN2_5_7B,
    QWEN3_235B_A22B,
    SCOUT,
)


def refused(config: dict[str, Any]) -> dict[str, str]:
    """Message by path of every problem of an import."""
    with pytest.raises(SpecError) as caught:
        import_config(config, file="config.json")
    assert all(problem.place and problem.place.file == "config.json" for problem in caught.value.problems)
    return {problem.path: problem.message for problem in caught.value.problems}


CHANGES = [
    (LLAMA_3_1_8B, {"hidden_act": "gelu"}, "hidden_act"),
    (LLAMA_3_1_8B, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
    (LLAMA_3_1_8B, {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 1}}, "rope_scaling.twist"),
    (LLAMA_3_1_8B, {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
    (LLAMA_3_1_8B, {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}}, "rope_scaling"),
    (LLAMA_3_1_8B, {"attention_dropout": 0.1}, "attention_dropout"),
    (LLAMA_3_1_8B, {"is_encoder_decoder": True}, "is_encoder_decoder"),
    (LLAMA_3_1_8B, {"layer_types": ["full_attention"] * 32}, "layer_types"),
    (LLAMA_3_1_8B, {"sliding_window": 4096}, "sliding_window"),
    (LLAMA_3_1_8B, {"torch_dtype": "float8_e4m3fn"}, "torch_dtype"),
    (MISTRAL_7B, {"attention_bias": True}, "attention_bias"),
    (MIXTRAL_8X7B, {"router_jitter_noise": 0.1}, "router_jitter_noise"),
    (MIXTRAL_8X7B, {"num_experts": 16}, "num_experts"),
    (GEMMA_2_27B, {"hidden_activation": "gelu"}, "hidden_activation"),
    (GEMMA_2_27B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (GEMMA_2_27B, {"sliding_window": None}, "sliding_window"),
    (DEEPSEEK_V3, {"topk_method": "greedy"}, "topk_method"),
    (DEEPSEEK_V3, {"scoring_func": "softmax"}, "scoring_func"),
    (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq"),
    (DEEPSEEK_V3, {"num_key_value_heads": 8}, "num_key_value_heads"),
    (DEEPSEEK_V3, {"first_k_dense_replace": 61}, "first_k_dense_replace"),
    (QWEN2_5_7B, {"use_mrope": True}, "use_mrope"),
    (QWEN2_5_7B, {"layer_types": ["sliding_attention"] * 28}, "layer_types"),
    (QWEN2_5_7B, {"layer_types": ["full_attention"]}, "layer_types"),
    (QWEN3_235B_A22B, {"mlp_only_layers": "none"}, "mlp_only_layers"),
    (SCOUT, {"text_config": {**SCOUT["text_config"], "no_rope_layers": [1, 0]}}, "text_config.no_rope_layers"),
    (SCOUT, {"text_config": {**SCOUT["text_config"], "gate": 1}}, "text_config.gate"),
    (SCOUT, {"text_config": {**SCOUT["text_config"], "interleave_moe_layer_step": 0}},
     "text_config.interleave_moe_layer_step"),
    (SCOUT, {"vision_config": {**SCOUT["vision_config"], "vision_output_dim": 7680}},
     "vision_config.vision_output_dim"),
    (SCOUT, {"vision_config": {**SCOUT["vision_config"], "norm_eps": 1e-6}}, "vision_config.norm_eps"),
    (SCOUT, {"vision_config": {**SCOUT["vision_config"], "vision_feature_layer": -2}},
     "vision_config.vision_feature_layer"),
]  # fmt: skip


@pytest.mark.parametrize(("release", "change", "path"), CHANGES, ids=[f"{c[0]['model_type']}-{c[2]}" for c in CHANGES])
def test_a_field_that_would_change_the_mathematics_is_refused_by_name(
    release: dict[str, Any], change: dict[str, Any], path: str
) -> None:
    import_config(release)
    assert path in refused({**release, **change})


@pytest.mark.parametrize("model_type", ["gpt_oos", "lama", None, 4, ["llama"], {}, "x" * 10_000])
def test_an_unknown_model_type_is_refused_with_the_known_ones(model_type: Any) -> None:
    assert list(refused({**LLAMA_3_1_8B, "model_type": model_type})) == ["model_type"]


@pytest.mark.parametrize("model_type", ["lama", "glm4_vision", "llama5"])
def test_a_model_type_is_not_typed_so_no_other_one_is_guessed(model_type: str) -> None:
    with pytest.raises(SpecError, match=r"one of: .*llama") as caught:
        import_config({**LLAMA_3_1_8B, "model_type": model_type})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_that_is_known_and_not_read_is_refused_with_what_is_missing(model_type: str) -> None:
    assert model_type not in FAMILIES
    assert refused({**LLAMA_3_1_8B, "model_type": model_type}) == {
        "model_type": f"{model_type} is not read: {REFUSED[model_type]}"
    }


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_empty_config_of_each_family_names_what_is_missing(model_type: str) -> None:
    problems = refused({"model_type": model_type})
    may_be_flat = model_type == "qwen2_5_vl"  # its published configs keep the text's fields at the top
    inside = not may_be_flat and (model_type == "llama4" or bool(FAMILIES[model_type].naming.of_towers))
    missing = "text_config" if inside else "hidden_size"
    assert problems[missing] == "missing field"


BAD_SIZES = [0, -1, True, 1.5, "4096", None, [], {}, 10**30, 10**4000, float("nan")]


@pytest.mark.parametrize("value", BAD_SIZES, ids=[repr(value)[:20] for value in BAD_SIZES])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_is_none_is_refused(name: str, value: Any) -> None:
    assert name in refused({**LLAMA_3_1_8B, name: value})


@pytest.mark.parametrize("value", [0, -1.0, True, "1e-5", [], float("nan"), float("inf"), 1e300, 10**4000])
@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_a_number_that_is_none_is_refused(name: str, value: Any) -> None:
    assert name in refused({**LLAMA_3_1_8B, name: value})


def test_all_problems_are_reported_at_once() -> None:
    problems = refused({**LLAMA_3_1_8B, "hidden_act": "relu", "vocab_size": "big", "twist": 1})
    assert set(problems) == {"hidden_act", "vocab_size", "twist"}


def test_heads_that_do_not_divide_are_refused_in_the_words_of_the_spec() -> None:
    assert "text.parts.attention" in refused({**LLAMA_3_1_8B, "num_key_value_heads": 5})


def test_a_billion_layers_are_refused_before_lists_are_made_of_them() -> None:
    assert "num_hidden_layers" in refused({**LLAMA_3_1_8B, "num_hidden_layers": 10**9})


HOSTILE = {
    "empty": b"",
    "no_json": b"{",
    "list": b"[1, 2]",
    "number": b"4",
    "nan": b'{"model_type": "llama", "hidden_size": NaN}',
    "twice": b'{"model_type": "llama", "model_type": "qwen2"}',
    "huge": b'{"model_type": "llama", "hidden_size": ' + b"9" * 100_000 + b"}",
    "deep": b'{"model_type": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "latin": b'{"model_type": "\xe9"}',
    "binary": bytes(range(256)),
    "utf16": '{"model_type": "llama"}'.encode("utf-16"),
    "large": b" " * ((64 << 20) + 1),
    "surrogate": b'{"model_type": "llama", "\\ud800": 1}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_gets_an_error_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        import_file(path)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_is_no_file_gets_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        import_file(tmp_path / name)


def test_a_config_is_called_as_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_3_1_8B), encoding="utf-8")
    assert import_file(folder / "config.json").spec.name == "Llama-3.1-8B"
    assert import_file(folder / "config.json", name="mine").spec.name == "mine"


NOT_IN_ANY_FAMILY = {
    "text.head_bias=true": "text.head.bias",
    "text.final_norm=false": "text.final_norm",
    "text.learned_positions=true": "text.learned_positions",
    "text.embedding_scale=2.0": "text.scale",
    "text.parts.moe.router.score=softmax": "text.layers[…].ffn.router.score",
    "text.parts.moe.router.scales=output": "text.layers[…].ffn.router.scales",
    "text.parts.moe.num_shared_experts=2": "text.layers[…].ffn.shared_size",
    "text.parts.moe.capacity_factor=1.5": "text.layers[…].ffn.capacity_factor",
    "vision.tower.class_token=first": "vision.class_token",
    "vision.adapter.bias=true": "vision.adapter.bias",
}


@pytest.mark.parametrize(("change", "path"), NOT_IN_ANY_FAMILY.items())
def test_an_export_refuses_what_no_family_can_say(change: str, path: str) -> None:
    spec = l4spec.load("tiny/scout", [change])
    with pytest.raises(SpecError, match="no Hugging Face family") as caught:
        export_config(spec)
    assert path in [problem.path for problem in caught.value.problems]


def test_an_export_to_an_unknown_family_is_refused() -> None:
    spec = l4spec.load("compare/mistral-nemo-2407", ["huggingface.model_type=mistrall"])
    with pytest.raises(SpecError, match="unknown model_type"):
        export_config(spec)


def test_a_model_that_outgrows_its_family_is_exported_to_one_that_fits() -> None:
    imported = import_config(LLAMA_3_1_8B).data
    windowed = json.loads(json.dumps(imported))
    windowed["text"]["parts"]["attention"]["mask"] = {"kind": "sliding_window", "size": 1024}
    exported = export_config(l4spec.ModelSpec.model_validate(windowed))
    assert (exported["model_type"], exported["sliding_window"]) == ("mistral", 1024)


def test_carried_fields_that_no_longer_fit_give_way_to_the_model() -> None:
    imported = json.loads(json.dumps(import_config(DEEPSEEK_V3).data))
    imported["text"]["layers"] = [{"attention": "attention", "ffn": "dense"}, {"attention": "attention", "ffn": "moe"}]
    exported = export_config(l4spec.ModelSpec.model_validate(imported))
    assert (exported["first_k_dense_replace"], exported["num_hidden_layers"]) == (1, 2)
    assert exported["bos_token_id"] == DEEPSEEK_V3["bos_token_id"]


def test_an_exported_config_can_be_changed_without_touching_the_spec() -> None:
    imported = import_config(DEEPSEEK_V3)
    export_config(imported.spec)["quantization_config"]["quant_method"] = "none"
    assert export_config(imported.spec) == export_config(import_config(DEEPSEEK_V3).spec)
