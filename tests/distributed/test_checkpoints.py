"""What ranks of one layout write, ranks of any other read: sharded, and in Hugging Face's layout, byte for byte."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.parallel.checkpoints import load_sharded, save_hub, save_sharded
from l4spec.runtime.parallel.checkpoints.local_shards import chunks_of, shards_of_model
from l4spec.runtime.parallel.checkpoints.sharded import RunState
from l4spec.sharding.layout import Layout
from tests.distributed.world import run_world

CHUNK = 4096
WRITTEN = Layout(tp=2, ep=2)
READ = (Layout(ep=4), Layout(tp=2, dp=2), Layout(tp=2, pp=2), Layout(dp=2, ep=2))


def whole_model(name: str = "tiny/maverick", seed: int | None = 0) -> Any:
    return l4spec.build(l4spec.compile(l4spec.load(name)), dtype="fp32", seed=seed)


def distributed(layout: Layout, seed: int | None, name: str = "tiny/maverick") -> Any:
    from l4spec.runtime.parallel.distribute import distribute

    empty = l4spec.build(l4spec.compile(l4spec.load(name)), device="meta", dtype="fp32")
    return distribute(empty, layout, device="cpu", seed=seed)


def stepped(model: Any) -> torch.optim.AdamW:
    """AdamW after a step whose gradients are the weights, so that its state is known of every element."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer


def write(rank: int, folder: str) -> list[str]:
    model = distributed(WRITTEN, seed=0)
    optimizer = stepped(model)
    save_sharded(model, f"{folder}/sharded", optimizer, state=RunState(3, {"seed": 1}), chunk_bytes=CHUNK)
    save_hub(model, f"{folder}/hub", max_shard_bytes=60_000)
    return read(rank, folder)


def read(rank: int, folder: str) -> list[str]:
    """What is wrong with what each other layout reads."""
    expected, wrong = held_of_whole(), []
    for layout in READ:
        model = distributed(layout, seed=None)
        optimizer = torch.optim.AdamW(model.parameters())
        state = load_sharded(model, f"{folder}/sharded", optimizer)
        if state != RunState(3, {"seed": 1}):
            wrong.append(f"{layout}: {state}")
        moments = {p: optimizer.state[p] for p in model.parameters()}
        named = dict(model.named_parameters())
        for name, shard in shards_of_model(model).items():
            region = tuple(slice(run.start, run.stop) for run in shard.region)
            own = expected[name][region]
            if not torch.equal(shard.tensor, own):
                wrong.append(f"{layout}: {name}")
            if name in named:
                moment = moments[named[name]]
                if not torch.equal(moment["exp_avg"], own.mul(1 - 0.9)) or moment["step"].item() != 1.0:
                    wrong.append(f"{layout}: state of {name}")
        other = distributed(layout, seed=5)
        load_sharded(other, f"{folder}/hub")
        wrong += [
            f"{layout}: {name} from hub"
            for name, shard in shards_of_model(other).items()
            if not torch.equal(shard.tensor, shards_of_model(model)[name].tensor)
        ]
    return wrong


def held_of_whole() -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in whole_model().state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what four ranks wrote; they have read it in every other layout."""
    path = tmp_path_factory.mktemp("written")
    assert run_world(4, write, str(path)) == [[], [], [], []]
    return path


def test_every_layout_reads_what_another_wrote_weights_and_moments(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["hub", "sharded"]


def test_one_process_reads_what_ranks_wrote(folder: Path) -> None:
    model = whole_model(seed=7)
    state = load_sharded(model, folder / "sharded", torch.optim.AdamW(model.parameters()))
    assert state == RunState(3, {"seed": 1})
    assert all(torch.equal(held_of_whole()[name], tensor) for name, tensor in model.state_dict().items())


def test_ranks_write_hugging_face_s_layout_as_one_process_does_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    l4spec.save_checkpoint(whole_model(), tmp_path / "one", max_shard_bytes=60_000)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    written = {path.name: path.read_bytes() for path in (folder / "hub").iterdir()}
    assert len(expected) > 3
    assert written == expected


def test_nothing_is_written_twice_and_no_piece_is_larger_than_allowed(folder: Path) -> None:
    metadata = FileSystemReader(folder / "sharded").read_metadata()
    model = sum(tensor.nbytes for tensor in whole_model().state_dict().values())
    moments = 2 * sum(tensor.nbytes for tensor in whole_model().parameters())
    pieces = [
        torch.Size(chunk.sizes).numel() * stored.properties.dtype.itemsize
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata) and stored.size
        for chunk in stored.chunks
    ]
    assert sum(pieces) == model + moments
    assert max(pieces) <= CHUNK


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def refused(model: Any, folder: Path) -> str:
    """Why a folder is refused; the model must be as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_sharded(model, folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return str(error.value)


def test_a_folder_of_another_model_is_refused_with_every_difference(folder: Path) -> None:
    graph = l4spec.compile(l4spec.load("tiny/maverick", ["text.vocab_size=96"]))
    message = refused(l4spec.build(graph, dtype="fp32"), folder / "sharded")
    assert "2 problems" in message
    assert "model.text.embedding.weight: expected shape [96," in message
    assert "model.text.head.weight: expected shape [96," in message


def test_a_truncated_or_missing_file_is_refused_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    broken = copy_of(folder / "sharded", tmp_path / "broken")
    first, second, *_ = sorted(broken.glob("*.distcp"))
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    message = refused(whole_model(seed=7), broken)
    assert f"{first.name}: is truncated" in message
    assert f"{second.name}: is no file" in message


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("called",))


@pytest.mark.parametrize("content", [pickle.dumps(Hostile()), b"", b"no pickle", pickle.dumps({"a": 1})])
def test_a_description_that_is_none_is_refused_and_never_called(
    content: bytes, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copy_of(folder / "sharded", tmp_path / "broken")
    (broken / ".metadata").write_bytes(content)
    assert ".metadata: describes no checkpoint" in refused(whole_model(seed=7), broken)
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_there_is_not_overwritten(folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match="exists and is not empty"):
        save_sharded(whole_model(), folder / "sharded")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("l4spec.runtime.parallel.checkpoints.sharded.spec_text", full)
    with pytest.raises((UserError, OSError)):
        save_sharded(whole_model(), tmp_path / "new")
    monkeypatch.setattr("l4spec.runtime.parallel.checkpoints.hub.os.pwrite", full)
    with pytest.raises(UserError, match="rank 0: No space left on device"):
        save_hub(whole_model(), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [4, 40, 200, 10_000])
def test_pieces_of_a_region_are_small_and_fill_it(limit: int) -> None:
    region = (range(2, 7), range(1), range(3, 11))
    pieces = list(chunks_of(region, 4, limit))
    places = [(i, j, k) for piece in pieces for i in piece[0] for j in piece[1] for k in piece[2]]
    assert sorted(places) == [(i, 0, k) for i in range(2, 7) for k in range(3, 11)]
    assert all(4 * len(piece[0]) * len(piece[1]) * len(piece[2]) <= limit for piece in pieces)
    assert list(chunks_of((range(2, 2), range(5)), 4, limit)) == []
