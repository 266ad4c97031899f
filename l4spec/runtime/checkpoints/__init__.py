"""Checkpoints on disk: Hugging Face's families, Meta's Llama 4, and our own names for any other model."""

from l4spec.runtime.checkpoints.load import load_checkpoint
from l4spec.runtime.checkpoints.modules import open_mtp
from l4spec.runtime.checkpoints.open import open_model, spec_of
from l4spec.runtime.checkpoints.save import SavedCheckpoint, save_checkpoint

__all__ = ["SavedCheckpoint", "load_checkpoint", "open_model", "open_mtp", "save_checkpoint", "spec_of"]
