"""Models on machines that the tests share."""

from collections.abc import Callable
from functools import lru_cache

import pytest

import l4spec
from l4spec.sharding.layout import Layout
from planners.catalog import hardware, quantization
from planners.latency.efficiency import serving_efficiency
from planners.latency.machine import Machine
from planners.latency.step import StepModel
from planners.weights import scheme_of

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
