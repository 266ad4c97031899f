"""Catalogue of hardware, engines and prices: one YAML file each, every number with its source.

    hardware("h100").usable.num_bytes
    quantization("w4a16").law_for(Target("q_proj.weight", "attention", "linear"))
    engine("vllm-hybrid").reserved_for(tp=4)

A path to a YAML file works wherever a name does. Shipped entries are read once, on first use.
"""

from functools import lru_cache

from l4spec.catalog.entry import Entry, Sourced
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.spec.storage import Law, Target
from planners.catalog.engines import Engine
from planners.catalog.hardware import Capacity, Hardware
from planners.catalog.loader import Folder, known_names, load, shipped_names
from planners.catalog.user_catalog import find_own, own_files, user_folder

__all__ = [
    "Capacity",
    "Engine",
    "Entry",
    "Folder",
    "Hardware",
    "Law",
    "Quantization",
    "Sourced",
    "Target",
    "engine",
    "find_own",
    "hardware",
    "known_names",
    "own_files",
    "quantization",
    "shipped_names",
    "user_folder",
]


def hardware(name: str) -> Hardware:
    """The accelerator called `name`, or described by the YAML file at this path. Raises UserError."""
    return load("hardware", Hardware, name)


def quantization(name: str) -> Quantization:
    """The quantization scheme called `name`, or described by the YAML file at this path. Raises UserError."""
    return scheme_named(name)


def engine(name: str) -> Engine:
    """The engine called `name`, or described by the YAML file at this path; `vllm@0.11` is of that version.

    Raises UserError.
    """
    plain, at, version = name.rpartition("@")
    return _versioned(plain, version) if at and plain else load("engines", Engine, name)


@lru_cache(maxsize=64)
def _versioned(name: str, version: str) -> Engine:
    return load("engines", Engine, name).at_version(version)
