"""A damaged sharded checkpoint is refused in one line that names the file or tensor, and the model is as it was."""

import pickle
import pickletools
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.digests import DIGESTS, digest_of, read_digests, write_digests
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.checkpoints import load_sharded, save_sharded
from l4spec.runtime.parallel.checkpoints.sharded import RunState
from tests.hostile.draws import RANDOMS, draws, size

METADATA = ".metadata"
Damage = Callable[[Random, Path], None]


@pytest.fixture(scope="module")
def model() -> Model:
    """A small model with other weights than those that are saved."""
    return l4spec.build(l4spec.compile(l4spec.load("tiny/deepseek")), dtype="fp32", seed=7)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of the same model, in several files and many pieces."""
    folder = tmp_path_factory.mktemp("good") / "saved"
    saved = l4spec.build(l4spec.compile(l4spec.load("tiny/deepseek")), dtype="fp32", seed=0)
    save_sharded(saved, folder, state=RunState(3, {"--seed": 1}), chunk_bytes=4096)
    return folder


def again_digested(folder: Path) -> None:
    """Make the digests those of the files as they are, as somebody would who changes a folder on purpose."""
    digests = read_digests(folder)
    assert digests
    write_digests(folder, {name: digest_of(folder / name) for name in digests if (folder / name).is_file()})


def bytes_of_pieces(random: Random, folder: Path) -> None:
    """Bits, runs and ends of the files with values, of which nothing but their digest knows."""
    path = random.choice(sorted(folder.glob("*.distcp")))
    content = bytearray(path.read_bytes())
    start = random.randrange(len(content))
    match random.choice(["flip", "zero", "cut", "grow", "swap", "gone"]):
        case "flip":
            content[start] ^= 1 << random.randrange(8)
        case "zero":
            content[start : start + size(random, 4096)] = b"\xa5" * min(7, len(content) - start)
        case "cut":
            del content[start:]
        case "grow":
            content += bytes(size(random, 5000))
        case "swap":
            other = random.randrange(len(content))
            content[start], content[other] = content[other] ^ 1, content[start]
        case _:
            path.unlink()
            return
    path.write_bytes(content)


def bytes_of_texts(random: Random, folder: Path) -> None:
    """The same for what stands beside them."""
    path = folder / random.choice([METADATA, "run.json", "spec.yaml", DIGESTS])
    content = bytearray(path.read_bytes())
    start = random.randrange(len(content))
    if random.random() < 0.5:
        content[start] ^= 1 << random.randrange(7)
    else:
        del content[start : start + size(random, 500)]
    path.write_bytes(content)
    if path.name != DIGESTS and random.random() < 0.7:
        again_digested(folder)


ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**40, 2**63, 2**70, 1.5, "x", "../x", "/etc/passwd", "a\0b", (), [], {}, b"x"),
    *(torch.Size([1]), torch.int64, torch.Size([2**40, 2**40])),
)


def types(random: Random, folder: Path) -> None:
    """One value somewhere in the description replaced by another, of the right or a wrong type, and written again."""
    metadata = FileSystemReader(folder).read_metadata()
    name = random.choice(sorted(metadata.state_dict_metadata))
    tensor = metadata.state_dict_metadata[name]
    assert isinstance(tensor, TensorStorageMetadata)
    index = random.choice(list(metadata.storage_data))
    value = random.choice(ODD)
    holder, field = random.choice(
        [
            (metadata, "state_dict_metadata"), (metadata, "storage_data"), (tensor, "properties"), (tensor, "size"),
            (tensor, "chunks"), (random.choice(tensor.chunks), "offsets"), (random.choice(tensor.chunks), "sizes"),
            (metadata.storage_data[index], "relative_path"), (metadata.storage_data[index], "offset"),
            (metadata.storage_data[index], "length"), (metadata.storage_data[index], "transform_descriptors"),
        ]
    )  # fmt: skip
    if random.random() < 0.2:
        metadata.state_dict_metadata[name] = value
    else:
        setattr(holder, field, value)
    (folder / METADATA).write_bytes(pickle.dumps(metadata, protocol=random.choice([2, 4, 5])))
    again_digested(folder)


def pieces(random: Random, folder: Path) -> None:
    """A piece listed twice, moved, left out, of another size, or read from where another lies."""
    metadata = FileSystemReader(folder).read_metadata()
    many = [
        (name, tensor)
        for name, tensor in metadata.state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata) and len(tensor.chunks) > 1
    ]
    name, tensor = random.choice(many)
    place = random.randrange(len(tensor.chunks))
    one = tensor.chunks[place]
    index = MetadataIndex(name, one.offsets)
    match random.choice(["twice", "moved", "left out", "size", "aliased", "no place"]):
        case "twice":
            tensor.chunks[place] = tensor.chunks[place - 1]
        case "moved":
            one.offsets = torch.Size([one.offsets[0] + 1, *one.offsets[1:]])
        case "left out":
            del tensor.chunks[place]
        case "size":
            one.sizes = torch.Size([one.sizes[0] + random.choice([-1, 1]), *one.sizes[1:]])
        case "aliased":
            other = MetadataIndex(name, tensor.chunks[place - 1].offsets)
            metadata.storage_data[index] = metadata.storage_data[other]
        case _:
            del metadata.storage_data[index]
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    again_digested(folder)


def pickled(random: Random, folder: Path) -> None:
    """Pickles written for harm: calls, states of classes, texts that double, places in memory that do not exist."""
    doubled = b"\x80\x04\x8c\x0cpathlib\x94".replace(b"\x0c", b"\x07") + b"\x8c\x04Path\x94\x93\x94\x8c\x01a\x94"
    doubled += b"".join(b"h\x02h%ch%c\x86R\x94" % (3 + i, 3 + i) for i in range(random.randint(1, 60))) + b"."
    harms = [
        doubled,
        b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n}\x8c\x08__init__Nsb.",
        b"\x80\x02ctorch\nSize\n(K\x01tR}X\x01\x00\x00\x00aK\x01sb.",
        b"cos\nsystem\n(X\x02\x00\x00\x00idtR.",
        b"\x80\x04]r" + random.randbytes(4) + b".",
        b"\x80\x04" + b"]" * size(random, 200_000) + b".",
        b"\x80\x04" + b"(" * size(random, 200_000) + b"t.",
        b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"abc.",
        b"\x80\x04\x8b" + (2**31 - 1).to_bytes(4, "little") + b"abc.",
        b"\x80\x04]\x94" + b"h\x00a" * size(random, 100_000) + b".",
        random.randbytes(size(random, 2000)),
    ]
    content = random.choice(harms)
    if random.random() < 0.3:  # the operations of a good one, some of them in another order
        good = (folder / METADATA).read_bytes()
        cuts = [place for _, _, place in pickletools.genops(good) if place is not None]
        start, stop = sorted(random.sample(cuts, 2))
        content = good[:start] + good[stop:] if random.random() < 0.5 else good[:stop] + good[start:]
    (folder / METADATA).write_bytes(content)
    again_digested(folder)


def run_file(random: Random, folder: Path) -> None:
    """What a run says of itself."""
    texts = ["", "{", "[]", '{"step": -1}', '{"step": true, "settings": {}}', "9" * 5000, '{"step": 1e400}']
    (folder / "run.json").write_text(random.choice(texts))
    again_digested(folder)


DAMAGES: tuple[Damage, ...] = (
    bytes_of_pieces,
    bytes_of_pieces,
    bytes_of_texts,
    types,
    types,
    pieces,
    pickled,
    run_file,
)


def is_still_what_was_saved(model: Model, before: dict[str, torch.Tensor], good: Path) -> None:
    """A damage may leave the values as they are (a name of a place in a comment): then all of them were loaded."""
    with torch.no_grad():
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        load_sharded(model, good)
        assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
        model.load_state_dict(before)


@draws(100)
@given(RANDOMS)
def test_a_damaged_folder_is_refused_in_one_line_and_changes_nothing(
    model: Model, good: Path, folder: Path, random: Random
) -> None:
    damaged = folder / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(good, damaged)
    random.choice(DAMAGES)(random, damaged)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tracemalloc.start()
    refusal = refused(model, damaged)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000
    if refusal is None:
        is_still_what_was_saved(model, before, good)
    else:
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(len(str(problem).splitlines()) == 1 for problem in refusal.problems)
        assert any(path.name in str(refusal) for path in good.iterdir()) or "model." in str(refusal)


def refused(model: Model, folder: Path) -> UserError | None:
    """Why a folder is refused, or None where it was loaded."""
    try:
        load_sharded(model, folder)
    except UserError as error:
        return error
    return None


def test_without_digests_nothing_is_read_unless_it_is_asked_for(model: Model, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "bare")
    (tmp_path / "bare" / DIGESTS).unlink()
    with pytest.raises(UserError, match=r"digests\.json: is missing \(--no-verify"):
        load_sharded(model, tmp_path / "bare")
    assert load_sharded(model, tmp_path / "bare", verify=False) == RunState(3, {"--seed": 1})
