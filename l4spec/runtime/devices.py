"""Torch devices of this machine."""

import torch

from l4spec.errors import Problem, UserError


def checked_device(name: str) -> str:
    """`meta`, `cpu`, or a CUDA device that exists. Raises UserError."""
    if name in ("meta", "cpu"):
        return name
    head, _, index = name.partition(":")
    if head != "cuda" or name.endswith(":") or (index and not (index.isdecimal() and len(index) < 4)):
        raise UserError([Problem(f"expected cpu, cuda, cuda:N or meta, found {name[:60]!r}", path="--device")])
    device_name = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= device_name:
        raise UserError([Problem(f"{name} is not there: this machine has {device_name} CUDA devices", path="--device")])
    return name
