"""Families of which the language model alone is read: its tensors are transformers', by name and shape."""

from typing import Any

import pytest
import torch
import transformers

import l4spec
from l4spec.huggingface import FAMILIES, export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.runtime.checkpoints.hub_names import hub_layout
from l4spec.spec.resolve import resolve

Config = dict[str, Any]
TEXT: Config = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
}
CONFIGS: dict[str, Config] = {}
STEP: Config = {name: value for name, value in TEXT.items() if name != "rope_parameters"}
CONFIGS["step3p7"] = {
    "text_config": {
        **STEP,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 24,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "num_sliding_attention_heads": 8,
        "moe_layers_enum": "2,3",
        "rope_theta": [1e6, 1e4, 1e4, 1e6],
    },
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56},
}
CONFIGS["gemma4"] = {
    "text_config": {
        **STEP,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "enable_moe_block": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "attention_k_eq_v": True,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
    },
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16},
}
WITHOUT_A_SMALL_MODEL = {"kimi_k25": "its tower is built whole", "gemma3": "its projector too"}
pytestmark = pytest.mark.filterwarnings("ignore")


def on_meta(model_type: str) -> tuple[Config, Any]:
    """The config of a small model as transformers writes it, and the model without memory."""
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type])
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[model_type].architecture)(config)
    return {**config.to_dict(), "architectures": [FAMILIES[model_type].architecture]}, model


def test_every_such_family_is_tested_here() -> None:
    read = {name for name, family in FAMILIES.items() if family.language_model_only}
    assert read == CONFIGS.keys() | WITHOUT_A_SMALL_MODEL.keys()


@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_is_read_is_the_language_model_and_the_rest_is_the_tower(model_type: str) -> None:
    config, model = on_meta(model_type)
    imported = import_config(config)
    assert any("the language model alone" in note for note in imported.notes)
    layout = hub_layout(l4spec.compile(imported.spec), model_type)
    assert layout is not None
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = {tensor.name: tensor.shape for tensor in layout.matching(frozenset(theirs))}
    assert ours == {name: shape for name, shape in theirs.items() if name in ours}
    tied = {"lm_head.weight"} if imported.spec.text.tie_embeddings else set()
    assert all(
        "visual" in name or "vision" in name or "projector" in name for name in theirs.keys() - ours.keys() - tied
    )
    assert all(layout.ignored(name) for name in theirs.keys() - ours.keys())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_such_a_config_comes_back_with_its_tower(model_type: str) -> None:
    config, _ = on_meta(model_type)
    imported = import_config(config)
    exported = export_config(imported.spec)
    assert exported["vision_config"] == imported.data["huggingface"]["fields"]["vision_config"]
    assert not differences(resolve(imported.spec), resolve(import_config(exported).spec))
