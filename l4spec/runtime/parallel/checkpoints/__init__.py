"""Checkpoints that many ranks write and read together, each only what it holds, between any two layouts."""

from l4spec.runtime.parallel.checkpoints.hub import save_hub
from l4spec.runtime.parallel.checkpoints.modules import load_modules
from l4spec.runtime.parallel.checkpoints.sharded import load_sharded, save_sharded

__all__ = ["load_modules", "load_sharded", "save_hub", "save_sharded"]
