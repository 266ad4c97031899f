"""Engines: which cache law, which share of memory, and calibrated terms that follow from their readings."""

import pytest

from l4spec.errors import UserError
from l4spec.units import GiB
from planners.catalog import engine, shipped_names
from planners.catalog.engines import Measurement, ReservedTerm
from planners.catalog.versions import holds

KINDS = {
    "ideal": "bounded",
    "full": "full",
    "vllm": "full",
    "vllm-hybrid": "layer_groups",
    "sglang-hybrid": "two_pools",
    "llama.cpp": "cells",
    "tensorrt-llm": "full",
}


def _term(*gib: float) -> ReservedTerm:
    readings = tuple(Measurement(setting="a run", value=round(value * GiB), source="a log") for value in gib)
    return ReservedTerm(kind="non_torch", measurements=readings)


def test_each_engine_states_its_cache_law() -> None:
    assert {name: engine(name).kv.kind for name in shipped_names("engines")} == KINDS


def test_policies_without_an_engine_keep_nothing_besides() -> None:
    for name in ("ideal", "full"):
        policy = engine(name)
        assert (policy.reserved, policy.block_size_tokens, policy.memory, policy.rope_table) == ((), None, None, False)


@pytest.mark.parametrize(("readings", "median"), [((3, 1, 2), 2), ((4, 1, 2, 3), 2.5), ((7,), 7)])
def test_a_calibrated_term_is_the_median_of_its_readings_with_their_spread(
    readings: tuple[float, ...], median: float
) -> None:
    term = _term(*readings)
    assert term.num_bytes == median * GiB
    assert term.spread == (min(readings) * GiB, max(readings) * GiB)


def test_a_term_without_readings_or_with_a_crossed_range_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        _term()
    reading = Measurement(setting="a run", value=GiB, source="a log")
    with pytest.raises(ValueError, match="max_tp 1 is below min_tp 2"):
        ReservedTerm(kind="non_torch", min_tp=2, max_tp=1, measurements=(reading,))


@pytest.mark.parametrize("name", ["vllm", "vllm-hybrid"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 64])
def test_vllm_has_one_term_of_each_kind_at_every_tensor_parallel_degree(name: str, tp: int) -> None:
    kinds = [term.kind for term in engine(name).reserved_for(tp)]
    assert sorted(kinds) == ["cuda_graphs", "non_torch"]
    assert engine(name).unmeasured_for(tp) == ()
    assert engine(name).profiling_run is not None


def test_an_engine_of_another_version_has_that_versions_terms_and_says_what_nobody_measured() -> None:
    old, new = engine("vllm@0.11"), engine("vllm")
    assert old.profiling_run != new.profiling_run
    assert old.reserved_for(1) != new.reserved_for(1)
    assert old.unmeasured_for(2) == ("non_torch",)
    assert engine("vllm@0.19.1").reserved_for(2) == new.reserved_for(2)


@pytest.mark.parametrize(("name", "message"), [("vllm@new", "expected a version"), ("ideal@1.0", "has no versions")])
def test_what_is_no_version_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine(name)


@pytest.mark.parametrize(
    ("version", "since", "before", "expected"),
    [("0.19", "0.17", "", True), ("0.17.0", "0.17", "", True), ("0.9", "0.17", "", False), ("0.9", "", "0.17", True)],
)
def test_versions_are_compared_by_number(version: str, since: str, before: str, expected: bool) -> None:
    assert holds(version, since, before) == expected


def test_collectives_cost_vllm_two_gib_a_gpu() -> None:
    alone, together = (
        next(term for term in engine("vllm").reserved_for(tp) if term.kind == "non_torch") for tp in (1, 2)
    )
    assert together.num_bytes == round(2.07 * GiB)
    assert together.spread == (round(2.06 * GiB), round(2.13 * GiB))
    assert alone.num_bytes < GiB / 4


def test_both_settings_of_vllm_differ_in_the_cache_law_alone() -> None:
    off, on = engine("vllm"), engine("vllm-hybrid")
    assert off.reserved == on.reserved
    assert off.memory_share() == on.memory_share()
    assert (off.block_size_tokens, off.rope_table) == (on.block_size_tokens, on.rope_table)


def test_no_reading_comes_from_the_run_that_plans_are_tested_against() -> None:
    for name in shipped_names("engines"):
        for term in engine(name).reserved:
            for reading in term.measurements:
                assert "scout" not in (reading.source + reading.setting).lower()


@pytest.mark.parametrize("name", [name for name in KINDS if engine(name).memory is not None])
def test_a_share_of_memory_says_what_it_is_a_share_of(name: str) -> None:
    share = engine(name).memory_share()
    assert 0 < share.fraction.value <= 1
    assert "kv_cache" in share.covers
    assert (share.of == "free_after_load") == ("weights" not in share.covers)
