"""A killed save's leftovers are cleared by the next, a full disk is reported as one, a changing file is noticed."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from torch.distributed.checkpoint.api import CheckpointException

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.digests import Unchanged
from l4spec.runtime.checkpoints.write import made_beside
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.checkpoints import load_sharded, save_sharded
from l4spec.runtime.parallel.checkpoints.rank_coordination import failures_named
from l4spec.training.run.job import unwritable
from tests.hostile.draws import RANDOMS, draws
from tests.hostile.forks import killed


@cache
def small_model() -> Model:
    """Some 150 kB of weights."""
    return l4spec.build(l4spec.compile(l4spec.load("tiny/deepseek")), dtype="fp32", seed=0)


def test_what_killed_saves_left_is_cleared_by_the_next_to_the_same_place(tmp_path: Path) -> None:
    for _ in range(3):  # as a process that is killed between the first byte and the name leaves it
        (made_beside(tmp_path / "saved") / "half").write_bytes(bytes(1000))
        (tmp_path / ".other.unfinished.1").mkdir(exist_ok=True)
    l4spec.save_checkpoint(small_model(), tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.unfinished.1", "saved"]
    made_beside(tmp_path / "steps")
    save_sharded(small_model(), tmp_path / "steps")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.unfinished.1", "saved", "steps"]


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is such a one: what waits there for a disk is nobody's time."""
    memory = Path("/dev/shm")
    here = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path_factory.getbasetemp()))
    yield here / "killed"
    shutil.rmtree(here)


@cache
def other_model() -> Model:
    """The same model, to be loaded into."""
    return l4spec.build(small_model().graph, dtype="fp32", seed=None)


def save(way: str, model: Model, target: Path) -> None:
    """One of the two ways to save."""
    if way == "whole":
        l4spec.save_checkpoint(model, target, max_shard_bytes=60_000)
    else:
        save_sharded(model, target, chunk_bytes=4096)


@draws(50)
@given(RANDOMS)
def test_a_save_that_is_killed_leaves_the_whole_or_nothing(quick_folder: Path, random: Random) -> None:
    way, model = random.choice(["whole", "sharded"]), small_model()
    target = quick_folder / "saved"
    shutil.rmtree(quick_folder, ignore_errors=True)
    began = time.monotonic()
    save(way, model, target)
    seconds = time.monotonic() - began
    shutil.rmtree(target)
    for _ in range(random.randint(1, 3)):  # to the same place, each killed at its own moment
        if not target.exists():
            killed(lambda: save(way, model, target), random.uniform(0, 1.2) * seconds)
    if not target.exists():
        save(way, model, target)
        assert [path.name for path in quick_folder.iterdir()] == ["saved"], "hidden folders are left"
    other = other_model()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    load_sharded(other, target)  # compares every file with its digest
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_every_file_is_on_the_disk_before_its_folder_gets_its_name(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def recorded_sync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        done.append(f"{path.name} is {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    save(way, small_model(), tmp_path / "saved")
    (named,) = (place for place, text in enumerate(done) if text.endswith(" is saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} <= set(done[:named])
    assert done[named + 1] == tmp_path.name


def test_a_full_disk_is_reported_as_one() -> None:
    cause = RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 4480 vs 4374")
    with (
        pytest.raises(UserError, match="cannot write x: rank 0: No space left on device"),
        failures_named("cannot write x"),
    ):
        raise CheckpointException("write", {0: (cause, None)})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["file/x", "n" * 300, "/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_written_is_known_before_a_step(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert unwritable(tmp_path / name)
    assert unwritable(tmp_path / "new") == ""
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("how", ["longer", "replaced", "touched", "gone"])
def test_a_file_that_changes_while_it_is_read_is_noticed(how: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    before = Unchanged.of(tmp_path)
    before.require()
    match how:
        case "longer":
            path.write_bytes(bytes(101))
        case "replaced":
            path.rename(tmp_path / "old")
            path.write_bytes(bytes(100))
        case "touched":
            os.utime(path, ns=(1, 1))
        case _:
            path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: has changed while it was read"):
        before.require()


def test_a_load_during_which_a_file_is_replaced_is_refused(tmp_path: Path) -> None:
    l4spec.save_checkpoint(small_model(), tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    content = path.read_bytes()

    def replace(done: int, total: int) -> None:
        if done < total:
            path.unlink()
            path.write_bytes(content)

    with pytest.raises(UserError, match="has changed while it was read"):
        l4spec.load_checkpoint(small_model(), tmp_path / "saved", progress=replace)
    assert torch.is_tensor(next(iter(small_model().state_dict().values())))
