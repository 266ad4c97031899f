"""Pictures: every parameter is on a box, equal models give equal bytes, and no text becomes markup."""

import builtins
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import Result

import l4spec
from l4spec.errors import UserError
from l4spec.layers.declaration import Work
from l4spec.library import shipped_specs
from l4spec.report import templating
from l4spec.report.drawing import about, to_png, to_svg
from l4spec.report.picture import FoldBox, LayerBox, ModelPicture, picture_of
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from tests.cli.conftest import Run, run
from tests.contracts.kinds_everywhere import GRAPHS
from tests.report.conftest import Compile

__all__ = ["run"]

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script>&\"'\x00\x1b\u202e]]>"


def boxes(picture: ModelPicture) -> list[LayerBox | FoldBox]:
    return [box for column in (picture.vision, picture.text) if column is not None for box in column.boxes]


@pytest.mark.parametrize("name", list(shipped_specs()))
def test_every_shipped_model_is_drawn_the_same_each_time_and_within_its_frame(compiled: Compile, name: str) -> None:
    svg = to_svg(picture_of(compiled(name)))
    assert svg == to_svg(picture_of(l4spec.compile(l4spec.load(name))))
    root = ElementTree.fromstring(svg)
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    for box in root.iter(f"{SVG}rect"):
        assert 0 <= int(box.attrib["x"]) <= int(box.attrib["x"]) + int(box.attrib["width"]) <= width
        assert 0 <= int(box.attrib["y"]) <= int(box.attrib["y"]) + int(box.attrib["height"]) <= height
    assert height < 6000  # Nemotron 3: runs of 9, 11, 2 and 2 layers, each another; every other model below 4,000


def test_scout_is_one_pattern_of_four_layers_twelve_times_with_its_tower_beside(compiled: Compile) -> None:
    picture = picture_of(compiled("scout"))
    folds = [box for box in picture.text.boxes if isinstance(box, FoldBox)]
    assert [fold.title for fold in folds] == ["12 × this pattern of 4 layers"]
    assert [block.title.partition(" ·")[0] for block in folds[0].blocks] == ["3 × local + moe", "global + moe"]
    assert picture.vision is not None
    assert [type(box) for box in picture.vision.boxes].count(FoldBox) == 1
    assert picture.facts == "108.64B parameters · 17.17B active per token · 202.36 GiB bf16"


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_kind_of_layer_is_opened_into_its_operations(graph: Callable[[], Any]) -> None:
    compiled = graph()
    text = to_svg(picture_of(compiled))
    names = {op.name for group in compiled.groups for op in group.declaration.operations(Work(1, 1))}
    opened = {name for name in names if f">{name}  " in text}
    with_weights = {p.name.removesuffix(".weight") for _, p in compiled.parameters() if p.input_dim is not None}
    assert opened
    assert {name for name in names & with_weights if name not in opened} == set()


def test_layers_in_no_pattern_are_summed_up_not_left_out() -> None:
    parts = "\n    ".join(f"f{n}: {{kind: mlp, intermediate_size: {8 + n}}}" for n in range(40))
    layers = ", ".join(f"{{attention: a, ffn: f{n}}}" for n in range(40))
    spec = f"""
l4spec: 1
name: irregular
text:
  hidden_size: 16
  vocab_size: 32
  max_seq_len: 64
  norm: {{kind: layernorm, eps: 1.0e-5}}
  parts:
    a: {{kind: gqa, num_heads: 4, num_kv_heads: 2, head_dim: 4, mask: {{kind: causal}}, position: {{kind: none}}}}
    {parts}
  layers: [{layers}]
"""
    picture = picture_of(l4spec.compile(parse_spec(read_text(spec, "irregular.yaml"))))
    last = picture.text.boxes[-3]
    assert isinstance(last, LayerBox)
    assert last.title == "16 more layers in no pattern, of 16 kinds"


def test_no_text_of_a_model_becomes_markup(compiled: Compile) -> None:
    drawn = picture_of(compiled("tiny/scout"))
    text = replace(drawn.text, title=HOSTILE, boxes=(LayerBox(HOSTILE, HOSTILE, (HOSTILE,)), *drawn.text.boxes[1:]))
    svg = to_svg(replace(drawn, name=HOSTILE, facts=HOSTILE, text=text))
    root = ElementTree.fromstring(svg)
    assert not [element.tag for element in root.iter() if element.tag.endswith("script")]
    assert not re.search("[\x00-\x08\x0b\x1b\u202e]", svg)
    assert "&lt;script&gt;" in svg


def test_the_picture_is_reported_in_words_for_who_cannot_see_it(compiled: Compile) -> None:
    picture = picture_of(compiled("maverick"))
    root = ElementTree.fromstring(to_svg(picture))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == about(picture)
    assert "12 × this pattern of 4 layers: local + dense" in about(picture)


def test_a_picture_names_the_extra_where_its_library_is_missing(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] in ("jinja2", "resvg_py"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    templating._environment.cache_clear()
    with pytest.raises(UserError, match=r"jinja2"):
        to_svg(picture_of(compiled("tiny/scout")))
    with pytest.raises(UserError, match=r"resvg"):
        to_png("<svg/>")


def test_a_png_is_written_to_a_file_only(run: Run, tmp_path: Path) -> None:
    refused: Result = run("graph", "tiny/scout", "--format", "png")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--out" in refused.stderr
    path = tmp_path / "scout.png"
    assert run("graph", "tiny/scout", "--format", "png", "--out", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert run("graph", "tiny/scout", "--format", "svg", "--level", "op").exit_code == 2
