"""What a killed save leaves is cleared by the next, a full disk is told as one, and a file that changes is noticed."""

import os
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.digests import Unchanged
from l4spec.runtime.checkpoints.write import made_beside
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.checkpoints import save_sharded
from l4spec.runtime.parallel.checkpoints.rank_coordination import failures_named
from l4spec.training.run.job import unwritable


def small_model() -> Model:
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


def test_a_full_disk_is_told_as_one() -> None:
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
        l4spec.load_checkpoint(small_model(), tmp_path / "saved", report=replace)
    assert torch.is_tensor(next(iter(small_model().state_dict().values())))
