"""Kimi Linear's config in its published spelling, and what of it is refused; random ones are in `test_round_trip`."""

from typing import Any

import pytest
import transformers

import l4spec
from l4spec.errors import SpecError
from l4spec.huggingface import export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.spec.resolve import resolve

FULL = [4, 8, 12, 16, 20, 24, 27]
LINEAR: dict[str, Any] = {
    "full_attn_layers": FULL,
    "head_dim": 128,
    "kda_layers": [layer for layer in range(1, 28) if layer not in FULL],
    "num_heads": 32,
    "short_conv_kernel_size": 4,
}
CONFIG: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"],
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "kv_lora_rank": 512,
    "linear_attn_config": LINEAR,
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "model_type": "kimi_linear",
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 27,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}


def test_the_published_spelling_means_the_shipped_spec() -> None:
    imported = import_config(CONFIG)
    assert imported.notes == ()
    assert not differences(resolve(imported.spec), resolve(l4spec.load("kimi-linear-48b-a3b")))


def test_it_is_exported_in_the_published_spelling() -> None:
    exported = export_config(import_config(CONFIG).spec)
    assert {name: exported[name] for name in CONFIG} == CONFIG
    assert exported.keys() - CONFIG.keys() == {"torch_dtype", "attention_bias"}
    back = transformers.KimiLinearConfig(**exported)
    assert [index + 1 for index, kind in enumerate(back.layer_types or ()) if kind == "full_attention"] == FULL


def test_lists_that_transformers_writes_say_the_same_as_those_that_were_published() -> None:
    written = transformers.KimiLinearConfig(**CONFIG).to_dict()
    del written["linear_attn_config"], written["first_k_dense_replace"]
    assert not differences(resolve(import_config(written).spec), resolve(l4spec.load("kimi-linear-48b-a3b")))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a layer in neither list": ({"linear_attn_config": LINEAR | {"full_attn_layers": FULL[1:]}}, "each layer from 1"),
    "a layer in both": ({"linear_attn_config": LINEAR | {"full_attn_layers": [3, *FULL]}}, "each layer from 1 to 27"),
    "one list alone": (
        {"linear_attn_config": {name: LINEAR[name] for name in LINEAR if name != "kda_layers"}},
        "full_attn_layers: needs kda_layers beside it",
    ),
    "no list of numbers": ({"linear_attn_config": LINEAR | {"kda_layers": "1, 2"}}, "kda_layers"),
    "other types": ({"layer_types": ["linear_attention"] * 27}, "layer_types: says something else"),
    "other heads beside": ({"linear_num_heads": 16}, "linear_num_heads"),
    "a lower bound of decays": ({"linear_attn_config": LINEAR | {"gate_lower_bound": -5.0}}, "gate_lower_bound"),
    "positions": ({"mla_use_nope": False}, "mla_use_nope"),
    "shared keys": ({"num_key_value_heads": 8}, "num_key_value_heads"),
    "tied embeddings": ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    "another activation": ({"hidden_act": "situ"}, "hidden_act: expected 'silu', found 'situ'"),
    "a softmax": ({"moe_router_activation_func": "softmax"}, "moe_router_activation_func"),
    "Kimi-K3": ({"model_type": "kimi_k3"}, r"kimi_k3 is not read: the activation situ, attention residuals"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_mathematics_is_refused_by_name(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(SpecError, match=message):
        import_config(CONFIG | changed)
