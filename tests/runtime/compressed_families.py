"""The oracle of DeepSeek-V4: windows and compressed keys, several residual streams, experts looked up by token id."""

from copy import deepcopy
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.runtime.oracles import Oracle, _common, _random
from tests.runtime.tiny import VOCAB, Json, moe, text_of

INDEX: Json = {"num_heads": 8, "head_dim": 12, "topk": 3}
"""Eight heads: a key whose products are all negative scores 0, and equal scores could be chosen either way."""
_THETAS = {"main": 10000.0, "compress": 1000.0}
_YARN: Json = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 4.0, "beta_slow": 1.0}
_SIZES: Json = {
    "head_dim": 16,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 20,
    "moe_intermediate_size": 40,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "index_n_heads": 8,
    "index_head_dim": 12,
    "index_topk": 3,
    "sliding_window": 7,
    "hc_mult": 3,
    "hc_sinkhorn_iters": 4,
    "swiglu_limit": 0.5,
    "rms_norm_eps": 1e-6,
    "partial_rotary_factor": 0.25,
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 6},
    "mlp_layer_types": ["hash_moe", "moe", "moe"],
    "rope_parameters": {
        "main": {"rope_type": "default", "rope_theta": _THETAS["main"], "partial_rotary_factor": 0.25},
        "compress": {
            "rope_type": "yarn",
            "rope_theta": _THETAS["compress"],
            "partial_rotary_factor": 0.25,
            "attention_factor": 1.0,
            **_YARN,
        },
    },
}
ATTENTION: Json = {
    "kind": "compressed_attention",
    "num_heads": 4,
    "head_dim": 16,
    "rope_head_dim": 4,
    "q_lora_rank": 24,
    "num_output_groups": 2,
    "output_lora_rank": 20,
    "window": 7,
    "norm_eps": 1e-6,
    "position": {"kind": "rope", "theta": _THETAS["main"], "layout": "interleaved"},
}
SCALED: Json = {
    "kind": "rope",
    "theta": _THETAS["compress"],
    "layout": "interleaved",
    "scaling": {
        "kind": "yarn",
        "factor": 4.0,
        "original_max_seq_len": 64,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
SPARSE: Json = ATTENTION | {"position": SCALED, "compression": {"ratio": 4, "overlap": True, "index": INDEX}}
HEAVY: Json = ATTENTION | {"position": SCALED, "compression": {"ratio": 6}}
_ROUTER: Json = {"score": "sqrt_softplus", "scales": "output", "renormalize": True, "scaling_factor": 1.5}
_EXPERTS: Json = moe(num_shared_experts=1, clamp={"limit": 0.5})
HASHED: Json = _EXPERTS | {"router": _ROUTER | {"by_token": True}}
CHOSEN: Json = _EXPERTS | {"router": _ROUTER | {"correction_bias": True}}
STREAMS: Json = {"count": 3, "sinkhorn_iterations": 4, "norm_eps": 1e-6}
TEXT = text_of(
    {"window": ATTENTION, "sparse": SPARSE, "heavy": HEAVY, "hashed": HASHED, "moe": CHOSEN},
    [
        {"attention": "window", "ffn": "hashed"},
        {"attention": "sparse", "ffn": "moe"},
        {"attention": "heavy", "ffn": "moe"},
    ],
    norm={"kind": "rmsnorm", "eps": 1e-6},
    streams=STREAMS,
)
_NAMES = (
    ("model.hc_head.hc_", "text.streams_join."),
    (".attn_hc.", ".attention_streams."),
    (".ffn_hc.", ".ffn_streams."),
    (".attention.compressor.index_scorer.", ".attention.index."),
    (".attention.compressor.index_", ".attention.index."),
    (".ffn.gate.tid2eid", ".ffn.router.experts_of_token"),
)


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    for theirs, ours in _NAMES:
        if theirs in name:
            return {name.replace(theirs, ours): tensor}
    return None


def deepseek_v4(seed: int = 0) -> Oracle:
    """DeepseekV4ForCausalLM: a window alone, entries of 4 tokens that an index chooses, and entries of 6."""
    common = _common(3) | {"num_key_value_heads": 1}
    config = transformers.DeepseekV4Config(**(common | _SIZES))
    config._attn_implementation = "eager"
    reference = _random(transformers.DeepseekV4ForCausalLM(config), seed)
    choices = torch.rand(VOCAB, 6, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :2]
    reference.model.layers[0].mlp.gate.tid2eid.copy_(choices)
    return Oracle(reference, deepcopy(TEXT), 3, widest=3 * 48, split=_renamed)


COMPRESSED_FAMILIES: dict[str, Any] = {"deepseek_v4": deepseek_v4}
