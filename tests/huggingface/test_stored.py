"""Stored quantization: what a config says is the plan's default, tensor by tensor, whichever tool wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest

import l4spec
import planners
from l4spec.huggingface import export_config, import_config
from l4spec.huggingface.importing import import_file
from l4spec.quantization.published import scheme_for
from l4spec.quantization.tensors import target_of
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from l4spec.spec.storage import Law, PlainLaw, ScaledLaw, StoredTable
from tests.huggingface.releases import DEEPSEEK_V3, LLAMA_3_1_8B, QWEN3_235B_A22B, SCOUT

Config = dict[str, Any]
E4M3 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}


def compressed(weights: Config, layout: str, ignore: list[str], **more: Any) -> Config:
    """A `quantization_config` of compressed-tensors with one group."""
    group = {"targets": ["Linear"], "weights": weights, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }


NAMED: dict[str, tuple[Config, Config, str]] = {
    "fp8 in blocks": (DEEPSEEK_V3, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
    "int4 in groups": (LLAMA_3_1_8B, compressed(INT4, "pack-quantized", ["lm_head"]), "w4a16"),
    "nvfp4": (LLAMA_3_1_8B, compressed({"num_bits": 4, "type": "float"}, "nvfp4-pack-quantized", ["lm_head"]), "nvfp4"),
    "ModelOpt": (LLAMA_3_1_8B, {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, "nvfp4"),
    "AWQ": (LLAMA_3_1_8B, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "awq"),
    "MXFP4 experts": (
        QWEN3_235B_A22B,
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        "mxfp4-experts",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_format_that_a_scheme_says_is_named_after_it(case: str) -> None:
    release, quantization, name = NAMED[case]
    assert import_config({**release, "quantization_config": quantization}).spec.stored_as == name


def laws(config: Config) -> dict[str, Law]:
    """The law of every tensor of a config's model by its name."""
    spec = import_config(config).spec
    graph = l4spec.compile(spec)
    table = scheme_for(spec, "as-published")
    return {
        f"{node.id}.{parameter.name}": table.law_for(target_of(graph, node, parameter))
        for node, parameter in graph.parameters()
    }


def packed(config: Config) -> set[str]:
    """Names of the tensors that are packed."""
    return {name for name, law in laws(config).items() if not isinstance(law, PlainLaw)}


def test_what_is_ignored_stays_as_it_is_tensor_by_tensor() -> None:
    ignore = [
        "re:.*vision_model.*",
        "re:.*multi_modal_projector.*",
        "re:.*self_attn.*",
        "re:.*router",
        "language_model.lm_head",
    ]
    quantization = compressed(E4M3, "float-quantized", ignore, input_activations=TOKEN)
    result = packed({**SCOUT, "quantization_config": quantization})
    assert result
    assert all(".ffn." in name and "router" not in name and name.startswith("text.") for name in result)
    assert "text.layers.0.ffn.shared_expert.down_proj.weight" in result


def test_a_mix_by_layers_is_written_as_rules_and_read_back() -> None:
    ignore = ["lm_head", "model.layers.0*", "model.layers.3.self_attn*", "model.layers.5.mlp.down_proj"]
    config = {
        **LLAMA_3_1_8B,
        "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ignore},
    }
    result = laws(config)
    plain = {name for name, law in result.items() if isinstance(law, PlainLaw) and name.endswith("_proj.weight")}
    attention = {f"text.layers.{i}.attention.{p}_proj.weight" for i in (0, 3) for p in "qkvo"}
    assert plain == attention | {f"text.layers.0.ffn.{p}_proj.weight" for p in ("gate", "up", "down")} | {
        "text.layers.5.ffn.down_proj.weight"
    }
    imported = import_config(config)
    assert isinstance(imported.spec.stored_as, StoredTable)
    assert parse_spec(read_text(imported.yaml, "spec.yaml")) == imported.spec


def test_targets_may_have_formats_of_their_own() -> None:
    quantized = {
        f"model.layers.{i}.{name}": {"quant_algo": algorithm, **size}
        for i in range(32)
        for name, algorithm, size in (
            ("self_attn.q_proj", "FP8", {}),
            ("mlp.down_proj", "W4A16_NVFP4", {"group_size": 16}),
        )
    }
    quantization = {"quant_algo": "MIXED_PRECISION", "quantized_layers": quantized}
    result = laws({**LLAMA_3_1_8B, "quantization_config": quantization})
    query, down = result["text.layers.7.attention.q_proj.weight"], result["text.layers.7.ffn.down_proj.weight"]
    assert isinstance(query, ScaledLaw)
    assert isinstance(down, ScaledLaw)
    assert (query.bits, query.group, down.bits, down.group) == (8, "tensor", 4, 16)
    assert len({name for name, law in result.items() if isinstance(law, ScaledLaw)}) == 64


def test_mlx_packs_embedding_and_head_too_and_says_the_scheme_twice() -> None:
    setting = {
        "group_size": 64,
        "bits": 4,
        "model.layers.0.mlp.down_proj": {"group_size": 64, "bits": 8},
        "lm_head": False,
    }
    result = laws({**LLAMA_3_1_8B, "quantization": setting, "quantization_config": setting})
    assert isinstance(result["text.embedding.weight"], ScaledLaw)
    assert isinstance(result["text.head.weight"], PlainLaw)
    down = result["text.layers.0.ffn.down_proj.weight"], result["text.layers.1.ffn.down_proj.weight"]
    assert [law.bits for law in down if isinstance(law, ScaledLaw)] == [8, 4]


OTHERS: dict[str, Config] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    "gptq by row": {"quant_method": "gptq", "bits": 8, "group_size": -1},
    "bitsandbytes nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "bitsandbytes int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fbgemm": {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]},
}


@pytest.mark.parametrize("case", OTHERS)
def test_formats_without_a_shipped_scheme_weigh_what_they_pack(case: str) -> None:
    graph = l4spec.compile(import_config({**LLAMA_3_1_8B, "quantization_config": OTHERS[case]}).spec)
    stored, plain = planners.plan(graph).weights.bytes, planners.plan(graph, quantization="bf16").weights.bytes
    bits = 4 if "nf4" in case or case == "gptq" else 8
    share = planners.plan(graph).weights.by_part
    layers = share["attention"] + share["dense_ffn"]
    elements = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert elements * bits / 8 < layers < elements * bits / 8 * 1.14  # scales, and zero points of GPTQ, on top
    assert stored < plain


def test_a_format_that_is_not_read_is_noted_and_not_guessed() -> None:
    for unread in ({"quant_method": "aqlm"}, {"quant_method": "gptq", "bits": "four"}, {"quant_method": 7}):
        imported = import_config({**LLAMA_3_1_8B, "quantization_config": unread})
        assert imported.spec.stored_as is None
        assert "which is not read" in imported.notes[0]
        assert "Note: " in imported.yaml


@pytest.mark.parametrize("place", ["quantization_config", "compression_config"])
def test_it_is_found_wherever_tools_put_it(place: str) -> None:
    setting = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert import_config({**DEEPSEEK_V3, "quantization_config": None, place: setting}).spec.stored_as == "fp8-block"
    inside = {**SCOUT, "text_config": {**SCOUT["text_config"], "quantization_config": setting}}
    assert import_config(inside).spec.stored_as == "fp8-block"


def test_a_file_beside_the_config_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert import_file(tmp_path).spec.stored_as == "nvfp4"


def test_as_published_is_the_default_of_a_plan_and_decides_whether_it_fits() -> None:
    graph = l4spec.compile(l4spec.load("compare/deepseek-v3"))
    published, asked = planners.plan(graph, gpus="8xH200"), planners.plan(graph, gpus="8xH200", quantization="bf16")
    assert (published.fits, asked.fits) == (True, False)
    assert (published.weights.scheme, published.deployment.as_published) == ("fp8-block", True)
    assert published.weights.bytes == planners.plan(graph, quantization="fp8-block").weights.bytes == 673_150_582_112


def test_training_keeps_unquantized_weights_whatever_is_published() -> None:
    graph = l4spec.compile(l4spec.load("compare/deepseek-v3"))
    plan = planners.plan(graph, gpus="2048xH100", mode="train", batch=2048, context=4096)
    assert plan.deployment.quantization == "bf16"


def test_an_unknown_scheme_in_a_spec_is_refused_with_its_path() -> None:
    with pytest.raises(l4spec.UserError, match="stored_as"):
        l4spec.compile(l4spec.load("compare/llama-3.1-8b", ["stored_as=fp9"]))


def test_an_exported_config_says_how_weights_are_stored_only_while_the_spec_does() -> None:
    imported = import_config(DEEPSEEK_V3)
    assert export_config(imported.spec)["quantization_config"]["quant_method"] == "fp8"
    assert "quantization_config" not in export_config(imported.spec.model_copy(update={"stored_as": None}))
