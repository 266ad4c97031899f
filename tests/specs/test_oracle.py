"""transformers as oracle: the model that it builds from the exported config has the parameters of the spec.

On the meta device, so that 671B parameters take seconds and no memory. Buffers are compared on their own.
"""

from typing import Any

import pytest
import torch
import transformers
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

import l4spec
from l4spec.huggingface import export_config

CHECKED = (
    *("scout", "maverick", "llama-guard-4-12b", "mobilellm-r1-950m", "tiny/scout", "tiny/maverick", "tiny/deepseek"),
    *("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-2-7b", "yi-34b", "mistral-nemo-2407", "mixtral-8x7b"),
    *("deepseek-v3", "gemma-2-27b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b"),
    *("qwen3-235b-a22b", "gpt-oss-120b", "gpt-oss-20b", "minimax-m2.5", "glm-4.5", "glm-4.5-air", "olmo-2-7b"),
    *("olmoe-1b-7b", "qwen1.5-moe-a2.7b", "qwen3-next-80b-a3b", "qwen3.5-27b", "qwen3.5-35b-a3b"),
    *("gemma-3-27b", "nemotron-3-nano-30b-a3b", "nemotron-3-super-120b-a12b", "nemotron-h-56b"),
    *("deepseek-v3.2", "glm-5.1", "mimo-v2-flash", "gemma-4-26b-a4b", "kimi-linear-48b-a3b"),
    *("qwen2.5-vl-7b", "qwen3-vl-4b", "qwen3-vl-235b-a22b", "smollm3-3b"),
)
DEEPSEEK_V2: dict[str, dict[str, Any]] = {
    "deepseek-v2-lite": {
        "hidden_size": 2048,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "n_routed_experts": 64,
        "moe_intermediate_size": 1408,
        "intermediate_size": 10944,
        "topk_method": "greedy",
    },
    "deepseek-v2": {
        "hidden_size": 5120,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "n_routed_experts": 160,
        "moe_intermediate_size": 1536,
        "intermediate_size": 12288,
        "topk_method": "group_limited_greedy",
    },
}


def on_meta(config: dict[str, Any]) -> torch.nn.Module:
    """The model that transformers builds, without memory for its weights."""
    architecture = config["architectures"][0]
    built = transformers.CONFIG_MAPPING[config["model_type"]](**config)
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, architecture)(built)
    return model


def numel_of(name: str, *, buffers: bool = False) -> int:
    """Elements of the spec's parameters, or of its buffers."""
    graph = l4spec.compile(l4spec.load(name))
    return sum(parameter.num_stored for _, parameter in graph.parameters() if parameter.buffer == buffers)


@pytest.mark.parametrize("name", CHECKED)
def test_a_spec_has_as_many_parameters_as_the_model_that_transformers_builds(name: str) -> None:
    model = on_meta(export_config(l4spec.load(name)))
    assert sum(parameter.numel() for parameter in model.parameters()) == numel_of(name)
    kept = set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert sum(model.state_dict()[name].numel() for name in kept) == numel_of(name, buffers=True)


@pytest.mark.parametrize(("name", "sizes"), DEEPSEEK_V2.items())
def test_deepseek_v2_has_as_many_parameters_as_the_model_that_transformers_builds(
    name: str, sizes: dict[str, Any]
) -> None:
    common = {
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "vocab_size": 102400,
        "first_k_dense_replace": 1,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
    }
    model = on_meta({**common, **sizes})
    assert sum(parameter.numel() for parameter in model.parameters()) == numel_of(name)


def test_step_has_as_many_parameters_as_its_language_model_in_transformers() -> None:
    config = export_config(l4spec.load("step-3.7-flash"))["text_config"]
    with torch.device("meta"):
        body = Step3p7TextModel(transformers.Step3p7TextConfig(**config))
    head = config["vocab_size"] * config["hidden_size"]
    assert sum(parameter.numel() for parameter in body.parameters()) + head == numel_of("step-3.7-flash")
    assert sum(value.numel() for name, value in body.state_dict().items() if "bias" in name) == numel_of(
        "step-3.7-flash", buffers=True
    )


def test_a_changed_spec_no_longer_equals_the_model() -> None:
    model = on_meta(export_config(l4spec.load("tiny/scout")))
    graph = l4spec.compile(l4spec.load("tiny/scout", ["text.parts.moe.intermediate_size=24"]))
    changed = sum(parameter.numel for _, parameter in graph.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) != changed
