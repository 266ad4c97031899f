"""`l4spec generate --image` and `--video`: what a file shows reaches the model, and what cannot be shown is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import l4spec
from l4spec.runtime.checkpoints import spec_of
from l4spec.runtime.images import cut_image, image_ids, read_image, read_stills
from l4spec.runtime.tokenizer import Message, TextTokenizer, open_tokenizer
from l4spec.tiling import TileGrid, image_tokens
from tests.cli.conftest import Run
from tests.runtime.images.clips import write_clip
from tests.runtime.images.processor import pattern

Image: Any = pytest.importorskip("PIL.Image")
pytest.importorskip("av")
NAMES = (
    *("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|image_start|>", "<|image_end|>"),
    *("<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
)


def write_tokenizer(path: Path, names: tuple[str, ...] = NAMES) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny/scout with a tokenizer, an image, and a clip."""
    folder = tmp_path_factory.mktemp("seeing")
    l4spec.save_checkpoint(l4spec.build(l4spec.load("tiny/scout"), seed=1), folder / "model")
    write_tokenizer(folder / "model" / "tokenizer.json")
    pixels = pattern(40, 90)
    data = bytes(pixels.permute(1, 2, 0).contiguous().flatten().tolist())
    Image.frombytes("RGB", (90, 40), data).save(folder / "a.png")
    write_clip(folder / "clip.mp4", seconds=2)
    return folder


def spoken(run: Run, folder: Path, *arguments: str) -> str:
    result = run("generate", str(folder / "model"), "--max-new-tokens", "6", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout + result.stderr.split()[0]


def expected(folder: Path, pixels: list[torch.Tensor], text: str, *, chat: bool) -> str:
    """The same by the library: ids laid out by hand, the model run on the tiles."""
    tokenizer = open_tokenizer(folder / "model" / "tokenizer.json")
    vision = spec_of(folder / "model").vision
    assert vision is not None
    cut = [cut_image(image, 28, vision.max_tiles, global_tile=True) for image in pixels]
    ids = tuple(number for one in cut for number in image_ids(one.grid, 4, tokenizer, global_tile=True))
    prompt = tokenizer.encode_chat([Message("user", text, ids)]) if chat else [*ids, *tokenizer.encode(text)]
    model = l4spec.open_model(folder / "model")
    model.image_token_id = tokenizer.id_of("<|patch|>")
    tiles = torch.cat([one.tiles for one in cut])
    stops = tokenizer.stop_ids
    new = model.generate([prompt], pixel_values=tiles, max_new_tokens=6, stop_ids=stops)[0][len(prompt) :]
    return "".join(tokenizer.stream(number for number in new if number not in stops)) + f"\n{len(new)}"


@pytest.mark.parametrize("chat", [False, True])
def test_an_image_reaches_the_model(run: Run, folder: Path, chat: bool) -> None:
    file = folder / "a.png"
    answer = spoken(run, folder, "--chat" if chat else "--prompt", "what", "--image", str(file))
    assert answer == expected(folder, [read_image(file)], "what", chat=chat)


def test_images_and_stills_stand_in_the_order_given(run: Run, folder: Path) -> None:
    file, clip = folder / "a.png", folder / "clip.mp4"
    options = ("--image", str(file), "--video", str(clip), "--frames", "2")
    stills = read_stills(clip, frames=2)
    answer = spoken(run, folder, "--prompt", "x", *options)
    assert answer == expected(folder, [read_image(file), *stills], "x", chat=False)


def test_another_picture_gives_other_logits(folder: Path) -> None:
    tokenizer = open_tokenizer(folder / "model" / "tokenizer.json")
    model = l4spec.open_model(folder / "model")
    model.image_token_id = tokenizer.id_of("<|patch|>")
    dark, light = (torch.full((3, 28, 28), value, dtype=torch.uint8) for value in (0, 255))
    ids = torch.tensor([[1, *image_ids(TileGrid(1, 1), 4, tokenizer, global_tile=True), 2]])
    with torch.no_grad():
        one, other = (model(ids, pixel_values=cut_image(p, 28, 4, global_tile=True).tiles) for p in (dark, light))
    assert not torch.allclose(one[:, -1], other[:, -1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 2), (3, 5), (4, 4)])
def test_an_image_has_as_many_tokens_as_a_plan_counts(folder: Path, rows: int, columns: int) -> None:
    tokenizer = open_tokenizer(folder / "model" / "tokenizer.json")
    ids = image_ids(TileGrid(rows, columns), 144, tokenizer, global_tile=True)
    assert len(ids) == image_tokens(rows * columns, 144, global_tile=True)
    tiles = rows * columns + (1 if rows * columns > 1 else 0)
    assert ids.count(tokenizer.id_of("<|patch|>") or 0) == 144 * tiles
    assert ids.count(tokenizer.id_of("<|tile_x_separator|>") or 0) == rows * (columns - 1)


def test_an_image_is_written_as_transformers_writes_it(folder: Path) -> None:
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    tokenizer: TextTokenizer = open_tokenizer(folder / "model" / "tokenizer.json")
    theirs: Any = object.__new__(Llama4Processor)
    for rows, columns in ((1, 1), (1, 3), (2, 2), (4, 1)):
        text = theirs._prompt_split_image((rows, columns), 4)
        assert image_ids(TileGrid(rows, columns), 4, tokenizer, global_tile=True) == tokenizer.encode(
            text, special=True
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "x", "--image", "nowhere.png"), "nowhere.png: no such file"),
        (("--prompt", "x", "--video", "nowhere.mp4", "--fps", "1"), "nowhere.mp4: no such file"),
        (("--prompt", "x", "--video", "c.mp4"), "--video: needs the number of frames to sample"),
        (("--prompt", "x", "--video", "c.mp4", "--fps", "1", "--frames", "2"), "--fps: says what --frames says"),
        (("--prompt", "x", "--fps", "1"), "--fps: samples a clip, and there is none"),
        (("--prompt", "x", "--video", "c.mp4", "--fps", "nan"), "--fps: expected a number above 0"),
        (("--prompt", "x", "--video", "c.mp4", "--fps", "-1"), "--fps: expected a number above 0"),
        (("--ids", "1,2", "--image", "{folder}/a.png"), "images need a tokenizer"),
        (("--prompt", "x", "--image", "{folder}/clip.mp4"), "is no image that can be read"),
        (("--prompt", "x" * 5000, "--image", "{folder}/a.png"), "the model is made for 4,096"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(
    run: Run, folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run("generate", str(folder / "model"), *(word.format(folder=folder) for word in arguments))
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_models_and_tokenizers_without_images_say_so(run: Run, folder: Path, tmp_path: Path) -> None:
    blind = l4spec.load("tiny/scout", ["vision=null"])
    l4spec.save_checkpoint(l4spec.build(blind, seed=1), tmp_path / "blind")
    tokenizer = ("--tokenizer", str(write_tokenizer(tmp_path / "plain.json", NAMES[:4])))
    image = ("--prompt", "x", "--image", str(folder / "a.png"))
    assert "has no vision" in run("generate", str(tmp_path / "blind"), *image, *tokenizer).stderr
    assert "lacks <|image_start|>" in run("generate", str(folder / "model"), *image, *tokenizer).stderr


@pytest.mark.parametrize(("package", "option"), [("PIL", "--image"), ("av", "--video")])
def test_without_the_extra_one_line_names_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, option: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    file = str(folder / ("a.png" if package == "PIL" else "clip.mp4"))
    more = ("--frames", "1") if package == "av" else ()
    result = run("generate", str(folder / "model"), "--prompt", "x", option, file, *more)
    assert result.exit_code == 2
    assert "l4spec[vision]" in result.stderr
