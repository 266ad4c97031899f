"""Static batches: the law is within its goal on models that it was not fitted on, and larger batches take longer."""

from dataclasses import replace
from functools import lru_cache

import pytest

from planners.evidence.static_batches import (
    FITTED,
    MODELS,
    BatchGroup,
    is_possible,
    load_of,
    model_of,
    predicted_seconds,
    read_batches,
    summarise_batches,
)
from planners.timing.static_batch import StaticBatch, static_batch_efficiency


@lru_cache(maxsize=1)
def groups() -> tuple[BatchGroup, ...]:
    return summarise_batches(read_batches())


def test_batches_of_models_that_were_not_fitted_are_within_12_percent_and_nine_of_ten_within_30() -> None:
    *by_engine, everything = groups()
    assert everything.num_rows == 641
    assert sum(group.num_rows for group in by_engine) == 641
    assert everything.median <= 0.12
    assert everything.p90 <= 0.30
    assert max(group.median for group in by_engine) <= 0.16


def test_no_batch_that_judges_is_of_a_fitted_model_or_faster_than_reading_the_weights() -> None:
    batches = read_batches()
    assert {batch.model for batch in batches} == set(MODELS) - set(FITTED)
    assert all(is_possible(batch) for batch in batches)
    assert not is_possible(replace(batches[0], seconds=batches[0].seconds / 100))


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "llama.cpp", "deepspeed-mii"])
def test_larger_batches_and_longer_requests_take_longer(engine: str) -> None:
    laws = static_batch_efficiency(engine)
    assert laws is not None
    assert not set(laws.models) - set(FITTED)
    batch = next(b for b in read_batches() if b.engine == engine)
    model = model_of(batch)
    for factors in laws.machines:
        load = StaticBatch(8, 256, 256)
        least = factors.seconds(model, load)
        assert factors.seconds(model, replace(load, batch=16)) > least
        assert factors.seconds(model, replace(load, prompt=512)) > least
        assert factors.seconds(model, replace(load, output=512)) > 1.5 * least


def test_what_the_cache_does_not_hold_decodes_in_further_waves() -> None:
    load = StaticBatch(64, 1024, 1024, capacity=16)
    assert (load.waves, load.decoding) == (4, 16)
    assert StaticBatch(8, 1024, 1024, capacity=16).waves == 1
    tight = next(b for b in read_batches() if b.hardware == "a100-40gb" and load_of(b).waves > 1)
    laws = static_batch_efficiency(tight.engine)
    assert laws is not None
    factors = laws.find("a100-40gb")
    assert factors is not None
    roomy = replace(load_of(tight), capacity=float("inf"))
    assert predicted_seconds(tight) > factors.seconds(model_of(tight), roomy)


def test_an_engine_or_gpu_that_nobody_measured_has_no_factors() -> None:
    assert static_batch_efficiency("sglang") is None
    laws = static_batch_efficiency("vllm")
    assert laws is not None
    assert laws.find("b200") is None
