"""SmolLM3: the config of its release in and out, windows, and what is refused."""

import copy
from typing import Any

import pytest

import l4spec
from l4spec.errors import SpecError
from l4spec.huggingface import export_config, import_config
from l4spec.huggingface.semantic_diff import differences
from l4spec.huggingface.text import attention_of
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.attention.positions import Rope
from l4spec.spec.resolve import resolve

RELEASE: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
"""Without its lists per layer, which say what the interval says."""
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mlp_bias": True}, "mlp_bias"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ({"no_rope_layers": [2] * 36}, "no_rope_layers"),
    ({"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ({"layer_types": ["sliding_attention"] * 36}, "layer_types"),
]


def test_the_config_of_the_release_means_the_shipped_spec_and_comes_back() -> None:
    spec = import_config(copy.deepcopy(RELEASE)).spec
    assert not differences(resolve(spec), resolve(l4spec.load("compare/smollm3-3b")))
    exported = export_config(spec)
    assert {name: exported[name] for name in RELEASE} == RELEASE
    assert exported["no_rope_layers"] == [1, 1, 1, 0] * 9


def test_only_layers_without_rotary_positions_have_a_window_unless_listed() -> None:
    config = {**RELEASE, "use_sliding_window": True, "sliding_window": 8192}
    blocks = resolve(import_config(config).spec).text.stack.blocks
    specs = [spec for spec in map(attention_of, blocks) if spec]
    pairs = [(isinstance(spec.position, Rope), isinstance(spec.mask, SlidingWindowMask)) for spec in specs]
    assert pairs == [(True, False), (True, False), (True, False), (False, True)] * 9


@pytest.mark.parametrize(("change", "path"), REFUSED)
def test_what_transformers_would_compute_otherwise_is_refused(change: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_config({**RELEASE, **change}, file="config.json")
    assert [problem.path for problem in caught.value.problems] == [path]
