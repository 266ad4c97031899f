"""Fields that change no number of a forward pass: what is kept for the way back, and what is not worth keeping."""

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
    # how it is stored: plan with --quantization instead
    "quantization_config",
    "compression_config",
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
}
"""Fields of every config with the value they always have; kept only when they differ."""
_NEVER_KEPT = ("model_type", "id2label", "label2id")
"""Written anyway, and the names of classes of a classification head."""


def finish_common(fields: Fields, ignorable: Iterable[str]) -> dict[str, Any]:
    """Refuse what would change the mathematics of every family and what is unknown; returns what is carried."""
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
    fields.read.update(_NEVER_KEPT)
    return fields.finish((*IGNORABLE, *ignorable), DROPPED)
