"""`gemma4`: Gemma 4, which sees and hears; the language model is `gemma4_text`, its towers are left out."""

from dataclasses import replace

from l4spec.huggingface.families.gemma4_text import FAMILY as TEXT
from l4spec.huggingface.multimodal import language_model

_FAMILY = language_model(
    "gemma4",
    "Gemma4ForConditionalGeneration",
    "models/gemma4/modeling_gemma4.py",
    {"gemma4_text": TEXT},
    prefix="model.language_model.",
    towers=("vision_config", "audio_config"),
    ignorable=("vision_soft_tokens_per_image",),
)
_EMBEDDERS = r"^(model\.)?embed_(vision|audio)\."
FAMILY = replace(_FAMILY, naming=replace(_FAMILY.naming, optional=(*_FAMILY.naming.optional, _EMBEDDERS)))
