"""Known families that cannot be imported, each with the missing layer kinds."""

from collections.abc import Mapping
from types import MappingProxyType

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "mamba": "Mamba-1 layers (selective scan of a full state matrix)",
        "falcon_mamba": "Mamba-1 layers (selective scan of a full state matrix)",
        "jamba": "Mamba-1 layers (selective scan of a full state matrix)",
        "zamba": "Mamba-1 layers and attention shared between blocks",
        "rwkv": "RWKV's time mixing",
        "recurrent_gemma": "RG-LRU recurrent layers",
        "minimax": "lightning attention (linear attention with a decay per head)",
        "minimax_m1": "lightning attention (linear attention with a decay per head)",
        "minimax_text_01": "lightning attention (linear attention with a decay per head)",
        "granite": "factors on embeddings, residuals, scores and logits together (mup-style multipliers)",
        "granitemoe": "factors on embeddings, residuals, scores and logits together (mup-style multipliers)",
        "granitemoehybrid": "Mamba-2 layers beside factors on residuals",
        "cohere": "a LayerNorm without bias and a factor on the logits",
        "cohere2": "a LayerNorm without bias and a factor on the logits",
        "command_r": "a LayerNorm without bias and a factor on the logits",
        "qwen2_vl": "a tower with the activation quick_gelu, x sigmoid(1.702 x)",
        "qwen2_vl_text": "the language model of Qwen2-VL, of which the tower's activation quick_gelu is missing",
        "mllama": "cross-attention to images between the layers",
        "llama4_vision_model": "a vision tower alone, without a language model",
        "ernie4_5": "its own order of rotated pairs",
        "ernie4_5_moe": "a router with a bias inside the softmax, beside its own order of rotated pairs",
        "hunyuan_v1_dense": "norms of queries and keys after the rotation",
        "hunyuan_v1_moe": "norms of queries and keys after the rotation",
        "dbrx": "clipped queries, keys and values",
        "olmo": "a LayerNorm without weights, and clipped queries, keys and values",
        "bloom": "ALiBi positions",
        "mpt": "ALiBi positions",
        "falcon": "ALiBi or parallel blocks with norms of their own",
        "gemma3n": "per-layer embeddings and alternating updates",
        "minimax_m3": "sparse attention to blocks that an index head chooses",
        "minimax_m3_vl": "sparse attention to blocks that an index head chooses",
        "kimi_k3": (
            "the activation situ, attention residuals (attn_res_block_size), latent experts with a norm, and gates "
            "that Kimi Linear has not (use_full_rank_gate, gate_lower_bound, mla_use_output_gate)"
        ),
        "mistral4": "its attention scale by position",
        "ministral3": "a query scale that grows with the position counted from 0",
        "mistral3": "a query scale that grows with the position counted from 0, beside a vision tower",
        "t5": "an encoder beside the decoder",
        "whisper": "an encoder beside the decoder",
        "bert": "an encoder without a causal mask",
    }
)
"""Missing features by `model_type`, to complete "… is not read: ". Unknown families are not listed."""
