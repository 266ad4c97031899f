"""On a disk that is too small, a save is refused in one line that says so, and leaves nothing; what was there stays."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given

import l4spec
from l4spec.cli.output import write_file
from l4spec.errors import UserError
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.checkpoints import save_sharded
from tests.hostile.draws import RANDOMS, draws
from tests.hostile.forks import mounted_disk, outcome_of

PAGE = 4096
BEFORE = "before\n"
FULL = "No space left on device"


@cache
def small_model() -> Model:
    """Some 150 kB of weights."""
    return l4spec.build(l4spec.compile(l4spec.load("tiny/deepseek")), dtype="fp32", seed=0)


def try_to_write(way: str, place: Path, num_bytes: int) -> dict[str, Any] | None:
    """On a disk of so many bytes: what was said, and what lies there then. None where the system gives no such disk."""
    if not mounted_disk(place, num_bytes):
        return None
    (place / "old").write_text(BEFORE)
    refusal = ""
    try:
        match way:
            case "whole":
                l4spec.save_checkpoint(small_model(), place / "new", max_shard_bytes=60_000)
            case "sharded":
                save_sharded(small_model(), place / "new", chunk_bytes=PAGE)
            case _:
                write_file(place / "old", "x" * 300_000, force=True)
    except UserError as error:
        refusal = str(error)
    return {
        "refusal": refusal,
        "names": sorted(path.name for path in place.iterdir()),
        "old": (place / "old").read_text(),
    }


@draws(60)
@given(RANDOMS)
def test_a_full_disk_is_reported_and_holds_nothing_half_written(folder: Path, random: Random) -> None:
    small_model()
    way, num_bytes = random.choice(["whole", "sharded", "file"]), PAGE * random.randint(8, 150)
    place = folder / "disk"
    place.mkdir(exist_ok=True)
    outcome = outcome_of(lambda: try_to_write(way, place, num_bytes))
    if outcome is None:
        pytest.skip("no disk of one's own on this system")
    assert isinstance(outcome, dict), (way, num_bytes, outcome)
    if outcome["refusal"]:
        assert FULL in outcome["refusal"], (way, num_bytes, outcome)
        assert len(outcome["refusal"].splitlines()) == 1, outcome
        assert outcome["names"] == ["old"], (way, num_bytes, outcome)
        assert outcome["old"] == BEFORE, (way, num_bytes, outcome)
    else:
        assert outcome["names"] == (["old"] if way == "file" else ["new", "old"]), (way, num_bytes, outcome)
    assert outcome["refusal"] or num_bytes > 100_000, (way, num_bytes)
