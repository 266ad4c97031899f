"""A folder in Hugging Face's layout that we wrote: any damage to any of its files is named, and changes nothing."""

import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.digests import CONFIG, DIGESTS, read_digests
from l4spec.runtime.model import Model
from tests.hostile.draws import RANDOMS, draws, size


@pytest.fixture(scope="module")
def model() -> Model:
    """A small model with other weights than those that are saved."""
    return l4spec.build(l4spec.compile(l4spec.load("tiny/scout")), dtype="fp32", seed=7)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint in several files."""
    folder = tmp_path_factory.mktemp("good") / "saved"
    saved = l4spec.build(l4spec.compile(l4spec.load("tiny/scout")), dtype="fp32", seed=0)
    l4spec.save_checkpoint(saved, folder, max_shard_bytes=300_000)
    return folder


def damaged(random: Random, path: Path) -> None:
    """Change a file in a way that leaves other bytes."""
    content = bytearray(path.read_bytes())
    start = random.randrange(len(content))
    match random.choice(["flip", "flip", "cut", "grow", "gone", "run"]):
        case "flip":
            content[start] ^= 1 << random.randrange(8)
        case "cut":
            del content[start:]
        case "grow":
            content += bytes(size(random, 5000))
        case "run":
            content[start : start + size(random, 500)] = random.randbytes(size(random, 500)) + b"\xa5"
        case _:
            path.unlink()
            return
    path.write_bytes(content)


@draws(100)
@given(RANDOMS)
def test_damage_to_any_file_is_refused_and_changes_nothing(
    model: Model, good: Path, folder: Path, random: Random
) -> None:
    spoilt = folder / "spoilt"
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(good, spoilt)
    name = random.choice(sorted(path.name for path in good.iterdir()))
    damaged(random, spoilt / name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if (refusal := refused(model, spoilt)) is not None:
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
        assert all(len(str(problem).splitlines()) == 1 for problem in refusal.problems)
        assert len(refusal.problems) < 500
    else:  # digests that are gone are those of nobody; a byte of them may be white space
        assert name == DIGESTS
        model.load_state_dict(before)


def refused(model: Model, folder: Path) -> UserError | None:
    """Why a folder is refused, or None where it was loaded."""
    try:
        l4spec.load_checkpoint(model, folder)
    except UserError as error:
        return error
    return None


def test_every_file_has_a_digest_and_an_edited_config_says_what_to_do(model: Model, good: Path, tmp_path: Path) -> None:
    assert set(read_digests(good) or ()) == {path.name for path in good.iterdir()} - {DIGESTS}
    edited = tmp_path / "edited"
    shutil.copytree(good, edited)
    text = (edited / CONFIG).read_text()
    (edited / CONFIG).write_text(text.replace("{", '{\n  "eos_token_id": 1,', 1))
    with pytest.raises(UserError, match=r"config\.json: is damaged.*--no-verify reads it as it is, if it was edited"):
        l4spec.load_checkpoint(model, edited)
    l4spec.load_checkpoint(model, edited, verify=False)
