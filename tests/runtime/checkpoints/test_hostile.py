"""Broken and hostile checkpoints: every problem named at once, nothing half-loaded, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.digests import DIGESTS
from l4spec.runtime.checkpoints.headers import INDEX, SINGLE
from tests.runtime.checkpoints.models import assert_same_tensors, save_small, small_model, tensors_of

FAMILY = "llama"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def refused(folder: Path) -> list[str]:
    """The problems for which a folder is refused; the model must be as it was."""
    model = small_model(FAMILY)
    before = tensors_of(model)
    with pytest.raises(UserError) as refusal:
        l4spec.load_checkpoint(model, folder)
    assert_same_tensors(tensors_of(model), before)
    return [str(problem) for problem in refusal.value.problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint in one file."""
    save_small(FAMILY, tmp_path / "saved")
    (tmp_path / "saved" / DIGESTS).unlink()  # as folders that others wrote, of which only headers can be checked
    return tmp_path / "saved"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A good checkpoint in several files with an index."""
    l4spec.save_checkpoint(small_model(FAMILY), tmp_path / "saved", max_shard_bytes=200_000)
    (tmp_path / "saved" / DIGESTS).unlink()
    return tmp_path / "saved"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the only file."""
    stored = load_file(folder / SINGLE)
    change(stored)
    save_file(stored, folder / SINGLE)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index."""
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of the only file, leaving its data as it is."""
    raw = (folder / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_missing_extra_misshapen_and_packed_tensors_are_all_named_at_once(folder: Path) -> None:
    def spoil(stored: dict[str, torch.Tensor]) -> None:
        del stored["model.norm.weight"]
        stored["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        stored[Q_PROJ] = stored[Q_PROJ][:-1].contiguous()
        stored["lm_head.weight"] = stored["lm_head.weight"].to(torch.float8_e4m3fn)
        stored["model.embed_tokens.weight"] = stored["model.embed_tokens.weight"].to(torch.int8)

    edit(folder, spoil)
    summary, *problems = refused(folder)
    assert "5 problems" in summary
    assert sorted(problems) == [
        "model.norm.weight: is missing",
        f"{SINGLE}: lm_head.weight: expected a number format out of BF16, F16, F32, F64, found F8_E4M3",
        f"{SINGLE}: model.embed_tokens.weight: expected a number format out of BF16, F16, F32, F64, found I8",
        f"{SINGLE}: {Q_PROJ}: expected shape [64, 64], found [63, 64]",
        f"{SINGLE}: model.layers.7.mlp.up_proj.weight: is stored, but the model has no such tensor",
    ]


def test_another_familys_weights_are_refused_by_every_name(tmp_path: Path) -> None:
    save_small("deepseek_v3", tmp_path / "other")
    problems = refused(tmp_path / "other")
    assert any(f"{Q_PROJ}: is missing" in problem for problem in problems)
    assert any("q_a_proj.weight: is stored, but" in problem for problem in problems)


def test_truncated_data_names_every_tensor_that_is_cut(folder: Path) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-100])
    assert all("is truncated" in problem for problem in refused(folder))


@pytest.mark.parametrize("size", [0, 4, 8, 20])
def test_a_file_cut_in_its_header_is_refused(folder: Path, size: int) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:size])
    assert refused(folder) == [f"{SINGLE}: is no safetensors file, or it is truncated in its header"]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1, -64], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [2**60, 2**60 + 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {},
        [],
        None,
        "text",
    ],
    ids=str,
)
def test_a_broken_header_entry_is_refused_by_its_name(folder: Path, entry: Any) -> None:
    edit_header(folder, lambda header: header.__setitem__(Q_PROJ, entry))
    assert all(Q_PROJ in problem for problem in refused(folder))


def test_tensors_that_lie_over_each_other_are_refused(folder: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        header[Q_PROJ]["data_offsets"] = header["model.layers.1.self_attn.q_proj.weight"]["data_offsets"]

    edit_header(folder, overlap)
    assert refused(folder)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}', b"9" * 5000]
)
def test_a_header_that_is_no_mapping_is_refused(folder: Path, text: bytes) -> None:
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text)
    assert all(problem.startswith(SINGLE) for problem in refused(folder))


@pytest.mark.parametrize(
    "file",
    [
        "../saved/model-00001-of-00003.safetensors",
        "/etc/passwd",
        "a/../b.safetensors",
        "..",
        "",
        "x\0.safetensors",
        "..\\x.safetensors",
        "config.json",
        7,
        None,
        ["x"],
    ],
    ids=repr,
)
def test_an_index_may_only_name_weight_files_beside_it(sharded: Path, file: Any) -> None:
    edit_index(sharded, lambda index: index["weight_map"].__setitem__(Q_PROJ, file))
    (problem,) = refused(sharded)
    assert f"weight_map.{Q_PROJ}: expected the name of a file beside the index" in problem


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000, '{"a":1,"a":2}']
)
def test_a_broken_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert all(problem.startswith(INDEX) for problem in refused(sharded))


def test_an_index_that_names_what_its_files_lack_or_elsewhere_hold_is_refused(sharded: Path) -> None:
    def spoil(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        other = next(file for file in places.values() if file != places[Q_PROJ])
        places["model.layers.9.x.weight"], places[Q_PROJ] = other, other

    edit_index(sharded, spoil)
    problems = refused(sharded)
    assert any("model.layers.9.x.weight: is missing, although the index names it" in problem for problem in problems)
    assert any(f"{Q_PROJ}: is in" in problem for problem in problems)


def test_a_file_that_the_index_names_must_be_there(sharded: Path) -> None:
    gone = next(sharded.glob("model-00002*"))
    gone.unlink()
    assert refused(sharded) == [f"{gone.name}: is named by the index, but is no file"]


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    save_file({Q_PROJ: torch.zeros(64, 64)}, folder / "second.safetensors")
    assert refused(folder) == [f"second.safetensors: {Q_PROJ}: is stored twice, in {SINGLE} too"]


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)
    assert refused(folder) == [f"{SINGLE}: is no file"]


@pytest.mark.parametrize("name", ["", "missing", "x" * 5000, "a\0b"])
def test_a_folder_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    assert "is no checkpoint folder" in refused(tmp_path / name / "no")[0]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "holds no weights" in refused(tmp_path)[0]


@given(position=st.integers(0, 8 + 4000), byte=st.integers(0, 255))
@settings(max_examples=60)
def test_any_changed_byte_of_a_header_loads_or_is_refused_without_half_loading(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("spoiled")
    good = save_small(FAMILY, folder / "saved")
    raw = bytearray((folder / "saved" / SINGLE).read_bytes())
    raw[position] = byte
    (folder / "saved" / SINGLE).write_bytes(raw)
    model = small_model(FAMILY, seed=1)
    before = tensors_of(model)
    try:
        l4spec.load_checkpoint(model, folder / "saved")
    except UserError:
        assert_same_tensors(tensors_of(model), before)
    else:
        loaded = tensors_of(model)
        assert all(not tensor.equal(before[name]) for name, tensor in loaded.items())
        assert loaded.keys() == tensors_of(good).keys()


def test_a_model_on_meta_neither_loads_nor_saves(folder: Path, tmp_path: Path) -> None:
    model = l4spec.build(small_model(FAMILY).graph, "meta")
    with pytest.raises(UserError, match="meta device"):
        l4spec.load_checkpoint(model, folder)
    with pytest.raises(UserError, match="meta device"):
        l4spec.save_checkpoint(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_over_and_nothing_is_left_beside(folder: Path) -> None:
    model, before = small_model(FAMILY), sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match="not empty"):
        l4spec.save_checkpoint(model, folder)
    with pytest.raises(UserError, match="not empty"):
        l4spec.save_checkpoint(model, folder / SINGLE)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_save_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        l4spec.save_checkpoint(small_model(FAMILY), tmp_path / "new", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_saved_to(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    l4spec.save_checkpoint(small_model(FAMILY), tmp_path / "new")
    assert (tmp_path / "new" / SINGLE).is_file()


MEASURE = """
import sys, torch, l4spec
from pathlib import Path
from l4spec.runtime.checkpoints import mapped

def resident_bytes():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024

torch.set_num_threads(1)
mapped.MOST_MAPPED_BYTES = 16 << 20
spec = l4spec.load("tiny/scout", ["text.parts.moe.intermediate_size=4096", "text.parts.moe.num_experts=32"])
model = l4spec.build(l4spec.compile(spec), seed=None)
for tensor in model.state_dict().values():
    tensor.fill_(1)
l4spec.save_checkpoint(l4spec.build(l4spec.compile(l4spec.load("tiny/deepseek"))), Path(sys.argv[1]) / "warm")
weights = sum(tensor.nbytes for tensor in model.state_dict().values())
largest = max(tensor.nbytes for tensor in model.state_dict().values())
start, peak = resident_bytes(), 0

def watch(done, total):
    global peak
    peak = max(peak, resident_bytes())

l4spec.save_checkpoint(model, Path(sys.argv[1]) / "saved", progress=watch)
l4spec.load_checkpoint(model, Path(sys.argv[1]) / "saved", progress=watch)
print(weights, largest, peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_loading_and_saving_need_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    weights, largest, extra = map(int, run.stdout.split())
    assert weights > 300 << 20
    assert extra <= 2 * largest + (48 << 20)  # 16 MiB of mapped files, and what torch and Python set up
    assert extra < weights // 2
