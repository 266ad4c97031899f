"""The files of fitted factors: every one loads, says where it comes from and how wrong it was."""

import pytest

from planners.catalog.loader import load, shipped_names
from planners.evidence.__main__ import ENGINES
from planners.evidence.fit_training import FAMILIES, most_devices, training_samples
from planners.evidence.rows import published_rows
from planners.timing.efficiency import (
    ServingEfficiency,
    TrainingEfficiency,
    serving_efficiency,
    training_efficiency,
)


def test_there_is_one_file_for_every_engine_and_family_that_is_fitted() -> None:
    assert set(shipped_names("efficiency")) == {*ENGINES, *(f"train-{family}" for family in FAMILIES)}


@pytest.mark.parametrize("name", [name for name in shipped_names("efficiency") if not name.startswith("train-")])
def test_a_serving_file_has_physical_shares_sources_and_errors(name: str) -> None:
    factors = load("efficiency", ServingEfficiency, name)
    assert all(
        0.1 < share <= 1 for share in (factors.memory, factors.cache, factors.compute, factors.attention, factors.links)
    )
    assert 1e-6 < factors.layer <= factors.moe_layer < 1e-3
    assert {error.metric for error in factors.errors} == {"tpot", "ttft"}
    assert "/" in factors.source


@pytest.mark.parametrize("name", [name for name in shipped_names("efficiency") if name.startswith("train-")])
def test_a_training_file_has_physical_shares_sources_and_errors(name: str) -> None:
    factors = load("efficiency", TrainingEfficiency, name)
    assert all(0.2 < share < 0.85 for share in factors.matmul.values())
    assert all(factor >= 1 for factor in factors.trainers.values())
    assert [error.metric for error in factors.errors] == ["step_time"]
    assert all(training_efficiency(device) == factors for device in factors.hardware)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_file_knows_the_largest_run_that_it_was_fitted_on(family: str) -> None:
    factors = load("efficiency", TrainingEfficiency, f"train-{family}")
    assert factors.most_devices == most_devices(training_samples(published_rows()), family)
    assert max(factors.most_devices.values()) >= 512


def test_policies_without_an_engine_go_with_vllms_factors_and_unmeasured_engines_with_none() -> None:
    assert serving_efficiency("ideal") == serving_efficiency("full") == serving_efficiency("vllm")
    assert serving_efficiency("llama.cpp") is None
    assert training_efficiency("mi300x") is None
