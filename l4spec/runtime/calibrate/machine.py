"""Conditions of a calibration: processor, memory, threads and versions."""

import os
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class MachineConditions:
    """The machine and the software of a calibration."""

    processor: str
    cores: int
    threads: int
    memory_bytes: int
    torch: str
    day: str


def conditions() -> MachineConditions:
    """As this process finds them now."""
    return MachineConditions(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        torch=torch.__version__,
        day=date.today().isoformat(),
    )


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown processor"
