"""A `.pth` file that holds anything but plain tensors of the right shapes is refused before a value is overwritten."""

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from hypothesis import given

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.meta_names import meta_layout
from l4spec.runtime.model import Model
from tests.hostile.draws import RANDOMS, draws, size


@cache
def small_model() -> Model:
    """A small Llama 4."""
    return l4spec.build(l4spec.compile(l4spec.load("tiny/scout")), dtype="fp32", seed=7)


@cache
def plain_tensors() -> dict[str, torch.Tensor]:
    """What Meta's only file would hold of it."""
    layout = meta_layout(small_model().graph, 1)
    assert layout is not None
    return {stored.name: torch.ones(stored.shape) for stored in layout.saved()}


def odd(random: Random, good: torch.Tensor) -> Any:
    """Something of the same shape that is no plain tensor, or nothing of the kind."""
    shape = good.shape
    ways: list[Callable[[], Any]] = [
        good.to_sparse, lambda: torch.empty(shape, device="meta"), lambda: torch.ones(1).expand(shape),
        lambda: good.to(torch.complex64), lambda: good[:0], lambda: good.to(torch.int8), good.double,
        lambda: good.transpose(0, -1).contiguous().transpose(0, -1),
        lambda: None, lambda: "text", lambda: [good], lambda: good.to(torch.bool),
        lambda: io.BytesIO(b"x" * size(random, 1000)), lambda: torch.nn.Parameter(good),
    ]  # fmt: skip
    return random.choice(ways)()


def spoilt(random: Random, path: Path, plain: dict[str, torch.Tensor]) -> None:
    """A file of one tensor that is odd, or one that is damaged as a whole."""
    path.unlink(missing_ok=True)
    stored: dict[Any, Any] = dict(plain)
    name = random.choice(sorted(plain))
    match random.choice(["odd", "odd", "odd", "packed", "pipe", "flip", "cut", "keys", "old", "doubled"]):
        case "odd":
            stored[name] = odd(random, plain[name])
            torch.save(stored, path)
        case "packed":
            torch.save(stored, path)
            with zipfile.ZipFile(path) as archive:
                entries = {entry: archive.read(entry) for entry in archive.namelist()}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for entry, content in entries.items():
                    archive.writestr(entry, content + bytes(size(random, 10**7) if "pkl" in entry else 0))
        case "pipe":
            os.mkfifo(path)
        case "flip" | "cut":
            torch.save(stored, path)
            raw = bytearray(path.read_bytes())
            place = random.randrange(len(raw))
            raw[place] ^= 1 << random.randrange(8)
            path.write_bytes(raw if random.random() < 0.5 else raw[:place])
        case "keys":
            torch.save({**stored, random.choice([1, None, (1, 2)]): torch.ones(1)}, path)
        case "old":
            torch.save(stored, path, _use_new_zipfile_serialization=False)
        case _:
            with zipfile.ZipFile(path, "w") as archive:
                text = b"\x80\x02c_codecs\nencode\n" + b"X\x01\x00\x00\x00a" + b"X\x03\x00\x00\x00hex" * 9
                archive.writestr("archive/data.pkl", text + b"\x86R." * size(random, 1000))
                archive.writestr("archive/version", "3\n")


@draws(150)
@given(RANDOMS)
def test_a_file_of_anything_but_plain_tensors_is_refused_before_a_value_changes(folder: Path, random: Random) -> None:
    model = small_model()
    spoilt(random, folder / "consolidated.pth", plain_tensors())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tracemalloc.start()
    refusal = refused(model, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (folder / "consolidated.pth").unlink()
    assert peak < 100_000_000
    if refusal is not None:
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert "consolidated.pth" in str(refusal) or "." in str(refusal)
    model.load_state_dict(before)


def refused(model: Model, folder: Path) -> UserError | None:
    """Why a folder is refused, or None where it was loaded."""
    try:
        l4spec.load_checkpoint(model, folder)
    except UserError as error:
        return error
    return None
