"""Fields that change no number of a forward pass: those carried for export, and those dropped."""

from collections.abc import Iterable, Mapping
from typing import Any

from l4spec.huggingface.fields import Fields

IGNORABLE = (
    # who and what
    "architectures",
    "transformers_version",
    # tokens
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    # training
    "initializer_range",
    "output_router_logits",
    "router_aux_loss_coef",
    # how it is run
    "use_cache",
    "cache_implementation",
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_autoset",
    # how text is drawn from it
    "max_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    # where its code and its saved state came from
    "pretraining_tp",
    "ep_size",
    "aux_loss_alpha",
    "seq_aux",
    "fused_mlp",
    "use_flash_attn",
    "gradient_checkpointing",
    "onnx_opset",
    "transformers.js_config",
    # how it is stored, which `stored_as` says
    "quantization_config",
    "compression_config",
    "quantization",
)
DROPPED: Mapping[str, Any] = {
    "_name_or_path": "",
    "is_decoder": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "chunk_size_feed_forward": 0,
    "problem_type": None,
    "torchscript": False,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    # how text was drawn by default, as transformers 4 wrote it into every config
    "min_length": 0,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "remove_invalid_values": False,
}
"""Fields of every config with the value they always have; kept only when they differ."""
_NEVER_KEPT = ("model_type", "id2label", "label2id", "num_labels")
"""Written anyway, and the names of classes of a classification head."""


OFF: Mapping[str, Any] = {
    "qkv_bias": False,
    "use_bias": False,
    "add_bias_linear": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_qk_norm": False,
    "qk_layernorm": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "use_parallel_residual": False,
    "parallel_attn": False,
    "alibi": False,
    "shared_expert_intermediate_size": 0,
    "num_shared_experts": 0,
    "n_shared_experts": 0,
    "num_nextn_predict_layers": 0,
    "router_jitter_noise": 0.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
"""Values of other families' switches that mean off; other values are refused."""


def finish_common(fields: Fields, ignorable: Iterable[str]) -> dict[str, Any]:
    """Refuse unknown fields and those that change the mathematics in every family; returns the carried fields."""
    for name, allowed in (
        ("attention_dropout", (0.0, 0)),
        ("is_encoder_decoder", (False,)),
        ("add_cross_attention", (False,)),
        ("tie_encoder_decoder", (False,)),
        ("cross_attention_hidden_size", (None,)),
        ("pruned_heads", ({},)),
    ):
        fields.read.add(name)
        if fields.has(name):
            fields.expect(name, *allowed)
    fields.carry("attention_dropout")
    ignorable = (*IGNORABLE, *ignorable)
    fields.carry(*ignorable)
    fields.fix({name: (usual,) for name, usual in OFF.items() if name not in fields.read})
    fields.read.update(_NEVER_KEPT)
    return fields.finish(ignorable, DROPPED)
