"""A calibration of a few small points writes a profile that plans and measurements take. No time is judged."""

from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest

import l4spec
from l4spec.report.calibrate import calibration_page, profile, profile_text
from l4spec.report.page import to_text
from l4spec.runtime.calibrate.run import Calibration, calibrate
from l4spec.runtime.calibrate.sizes import COARSE, FULL, Sizes, sizes_for
from l4spec.runtime.calibrate.timing import Case, rotating, take_turns
from l4spec.units import MiB
from planners.catalog import hardware
from planners.catalog.cpu_profile import Pieces
from planners.plan import plan

SMALL = replace(
    COARSE,
    product=((1, 8), (64, 128), (64, 128)),
    masked=((2, 4), (8, 16), (32, 64), (32, 64)),
    stream=((64, 4096),),
    norm=((128, 4096), (32, 64)),
    residency=(2 * MiB, 4 * MiB),
    cold_bytes=4 * MiB,
    evicting_bytes=MiB,
)


@cache
def calibration() -> Calibration:
    return calibrate(0.1, threads=1, dtypes=("fp32",), sizes=SMALL)


def test_whatever_the_time_everything_is_measured_once() -> None:
    calibrated = calibration()
    assert calibrated.turns >= 1
    measured = set(calibrated.tables["fp32"]) - {"residency", "experts"}
    assert measured | {"expert", "layer", "forward"} == set(Pieces.model_fields)
    for table in calibrated.tables["fp32"].values():
        assert min(table["seconds"]) > 0


def test_a_profile_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = profile(calibration())
    (tmp_path / "this.yaml").write_text(profile_text(written), encoding="utf-8")
    read = hardware(str(tmp_path / "this.yaml"))
    assert read.eager == written.eager
    assert read.usable.origin == "program"
    assert read.memory.bandwidth.value == pytest.approx(written.memory.bandwidth.value, abs=1)
    assert profile_text(read) == profile_text(written)


def test_a_profile_names_its_machine_and_conditions() -> None:
    made = profile(calibration())
    assert made.eager is not None
    assert made.eager.threads == 1
    assert set(made.eager.pieces) == {"fp32"}
    assert {"gqa", "mla", "swiglu", "mlp", "moe", "rmsnorm", "add", "rotation"} <= set(made.eager.pieces["fp32"].layer)
    assert made.eager.torch in made.memory.bandwidth.source
    assert "1xthis" in to_text(calibration_page(made, "1xthis"))


def test_a_plan_on_this_machine_has_times_of_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    place = tmp_path / "l4spec" / "hardware"
    place.mkdir(parents=True)
    (place / "this.yaml").write_text(profile_text(profile(calibration())), encoding="utf-8")
    graph = l4spec.compile(l4spec.load("tiny/maverick"))
    result = plan(graph, gpus="1xthis", quantization="fp32", kv_dtype="fp32", context=64).latency
    assert result is not None
    assert result.prefill is not None
    assert result.decode is not None
    assert all(row.estimate_seconds for step in (result.prefill, result.decode) for row in step.by_kind)


def test_the_number_of_threads_is_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    calibration()
    assert torch.get_num_threads() == before


def test_little_time_gets_coarse_grids_and_both_have_every_table() -> None:
    assert (sizes_for(10), sizes_for(100)) == (COARSE, FULL)
    for field in fields(Sizes):
        coarse, full = getattr(COARSE, field.name), getattr(FULL, field.name)
        assert coarse
        if field.name not in ("residency", "cold_bytes", "evicting_bytes"):
            assert len(coarse) == len(full)


def test_turns_go_on_until_the_time_is_over_and_at_least_once() -> None:
    seen: list[int] = []
    cases = [Case(lambda: seen.append(1)), Case(lambda: seen.append(2), prepare=lambda: seen.append(0))]
    assert take_turns(cases, end=0.0) == 1
    assert {0, 1, 2} == set(seen)
    assert all(case.median >= 0 for case in cases)
    first = seen.index(2)
    assert seen[first - 1] == 0, "what is prepared is prepared before"


def test_rotating_calls_come_in_turn() -> None:
    seen: list[str] = []
    call = rotating([lambda: seen.append("a"), lambda: seen.append("b")])
    for _ in range(4):
        call()
    assert sorted(seen[:2]) == sorted(seen[2:]) == ["a", "b"]
