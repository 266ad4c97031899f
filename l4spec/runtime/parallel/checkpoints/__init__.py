"""Checkpoints that ranks write and read together, each its own part only, from any layout to any other."""

from l4spec.runtime.parallel.checkpoints.hub import save_hub
from l4spec.runtime.parallel.checkpoints.modules import load_modules
from l4spec.runtime.parallel.checkpoints.sharded import load_sharded, save_sharded

__all__ = ["load_modules", "load_sharded", "save_hub", "save_sharded"]
