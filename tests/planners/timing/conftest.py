"""Models on machines that the tests share."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

import l4spec
from l4spec.sharding.layout import Layout
from planners.catalog import hardware, quantization
from planners.counts.weights import scheme_of
from planners.timing.efficiency import serving_efficiency
from planners.timing.machine import Machine
from planners.timing.step import StepModel
from tests.planners.module.made_up import made_up

Build = Callable[..., StepModel]


@lru_cache(maxsize=64)
def built(
    spec: str = "scout",
    device: str = "h100",
    *,
    scheme: str = "bf16",
    tp: int = 1,
    ep: int = 1,
    engine: str = "vllm",
    kv_bytes: int = 2,
    hosts_of: int = 8,
) -> StepModel:
    """A fresh model of a shipped spec on one kind of device."""
    return StepModel(
        graph=l4spec.compile(l4spec.load(spec)),
        scheme=scheme_of(quantization(scheme)),
        layout=Layout(tp=tp, ep=ep),
        machine=Machine(hardware(device), hosts_of),
        kv_dtype_bytes=kv_bytes,
        efficiency=serving_efficiency(engine),
    )


@pytest.fixture
def model() -> Build:
    """Builds a model by spec, device and layout."""
    return built


@pytest.fixture
def empty_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without entries of their own; gives the folder in which their hardware would lie."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "l4spec" / "hardware"


@pytest.fixture
def shelf_of_one(empty_shelf: Path) -> Path:
    """A user whose machine is the made-up one; gives its file."""
    from l4spec.report.calibrate import profile_text

    empty_shelf.mkdir(parents=True)
    (empty_shelf / "this.yaml").write_text(profile_text(made_up("fp32", "bf16")), encoding="utf-8")
    return empty_shelf / "this.yaml"
