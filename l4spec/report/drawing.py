"""The picture of a model laid out: rectangles, lines and texts with their coordinates, and the SVG made of them."""

from dataclasses import dataclass, field
from typing import Any

from l4spec.errors import UserError
from l4spec.report.picture import BlockBox, Column, FoldBox, LayerBox, ModelPicture
from l4spec.report.templating import render

WIDTH = 470
"""Of a column, in pixels."""
GAP, PAD, LANE = 26, 12, 7
TITLE, LINE = 20, 14
_TITLE_CHARS, _LINE_CHARS = 62, 60
"""Characters of 12 and 11 px that fit a box; fonts of equal width are 0.6 of their size wide."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box; its class gives the color."""

    x: int
    y: int
    width: int
    height: int
    style: str


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text at its baseline; `full` is the text before it was cut to fit."""

    x: int
    y: int
    text: str
    style: str
    full: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """A path of straight pieces that ends in an arrow."""

    points: str


@dataclass(slots=True)
class Canvas:
    """Everything drawn so far."""

    rectangles: list[Rectangle] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    lines: list[Arrow] = field(default_factory=list)

    def text(self, x: int, y: int, text: str, style: str, most: int) -> None:
        """A line of at most so many characters; a text that is cut has the whole in its tooltip."""
        shown = text if len(text) <= most else text[: most - 1] + "…"
        self.labels.append(Label(x, y, shown, style, text if shown != text else ""))

    def arrow(self, *points: tuple[int, int]) -> None:
        """An arrow through the points."""
        self.lines.append(Arrow(" ".join(f"{x},{y}" for x, y in points)))


def to_svg(picture: ModelPicture) -> str:
    """The picture as one SVG document: the same bytes for the same model, light or dark as the reader's screen is.

    Raises UserError without jinja2.
    """
    return render("model.svg.j2", about=about(picture), **canvas_of(picture))


def canvas_of(picture: ModelPicture) -> dict[str, Any]:
    """Variables of a picture's template, except for its texts."""
    canvas = Canvas()
    left = WIDTH + 2 * GAP if picture.vision is not None else 0
    top = 64
    tops, height = _column(canvas, picture.text, GAP + left, top)
    if picture.vision is not None:
        ends, beside = _column(canvas, picture.vision, GAP, top)
        height = max(height, beside)
        if picture.joins is not None:
            x, y = GAP + left, tops[picture.joins] + TITLE // 2
            canvas.arrow((GAP + WIDTH, ends[-1] + TITLE), (GAP + WIDTH + GAP, ends[-1] + TITLE), (x - GAP, y), (x, y))
    canvas.text(GAP, 26, picture.name, "name", 80)
    canvas.text(GAP, 44, picture.facts, "facts", 80)
    width = left + WIDTH + 2 * GAP
    return {"canvas": canvas, "name": picture.name, "width": width, "height": height + GAP}


def about(picture: ModelPicture) -> str:
    """The picture in words, for who cannot see it."""
    parts = [f"{picture.name}: {picture.facts}."]
    for column in (picture.vision, picture.text):
        if column is not None:
            parts.append(f"{column.title}: {'; '.join(map(_in_words, column.boxes))}.")
    return " ".join(parts)


def _in_words(box: LayerBox | FoldBox) -> str:
    if isinstance(box, LayerBox):
        return box.title
    blocks = ", ".join(block.title for block in box.blocks)
    return f"{box.title}: {blocks}" if box.title else blocks


def _column(canvas: Canvas, column: Column, x: int, y: int) -> tuple[list[int], int]:
    """Draws a column; returns the top of each box, and where the column ends."""
    canvas.text(x, y, column.title, "column", 40)
    y += 12
    tops = []
    middle = x + WIDTH // 2
    for number, box in enumerate(column.boxes):
        tops.append(y)
        y = _layer(canvas, box, x, y, WIDTH) if isinstance(box, LayerBox) else _fold(canvas, box, x, y)
        if number + 1 < len(column.boxes):
            canvas.arrow((middle, y), (middle, y + GAP - 4))
            canvas.text(middle + 8, y + GAP // 2 + 2, column.shapes[number], "shape", 40)
            y += GAP
    return tops, y


def _fold(canvas: Canvas, box: FoldBox, x: int, y: int) -> int:
    top, inner = y, 0
    place = len(canvas.rectangles)
    if box.title:
        inner = PAD
        canvas.text(x + PAD, y + TITLE - 4, box.title, "fold", _TITLE_CHARS)
        canvas.text(x + PAD, y + TITLE + LINE - 4, box.facts, "facts", _LINE_CHARS)
        y += TITLE + LINE + 6
    for number, block in enumerate(box.blocks):
        y = _block(canvas, block, x + inner, y, WIDTH - 2 * inner)
        if number + 1 < len(box.blocks):
            canvas.arrow((x + WIDTH // 2, y), (x + WIDTH // 2, y + GAP // 2 - 4))
            y += GAP // 2
    if box.title:
        y += PAD
        canvas.rectangles.insert(place, Rectangle(x, top, WIDTH, y - top, "fold"))
    return y


def _block(canvas: Canvas, block: BlockBox, x: int, y: int, width: int) -> int:
    top, place = y, len(canvas.rectangles)
    canvas.text(x + PAD, y + TITLE - 4, block.title, "block", _TITLE_CHARS)
    y += TITLE + 8
    lanes = {flow: lane for lane, flow in enumerate(f for f in block.flows if f[1] - f[0] > 1)}
    room = 2 * PAD + LANE * len(lanes)
    ends: dict[int, tuple[int, int]] = {-1: (top + TITLE + 2, top + TITLE + 2)}
    for number, layer in enumerate(block.layers):
        start = y
        y = _layer(canvas, layer, x + PAD, y, width - PAD - room)
        ends[number] = start, y
        y += 10
    middle, right = x + PAD + (width - PAD - room) // 2, x + width - room
    for source, target in block.flows:
        begin, end = ends[source][1], ends[target][0]
        if (source, target) not in lanes:
            canvas.arrow((middle, begin), (middle, end - 2))
            continue
        lane = right + PAD + LANE * lanes[source, target]
        into = end + TITLE // 2
        canvas.arrow((middle, begin + 3), (lane, begin + 3), (lane, into), (right + 2, into))
    canvas.rectangles.insert(place, Rectangle(x, top, width, y - top, "block"))
    return y


def _layer(canvas: Canvas, layer: LayerBox, x: int, y: int, width: int) -> int:
    """Draws a layer; returns where it ends."""
    chars = (width - 2 * PAD) * _LINE_CHARS // (WIDTH - 2 * PAD)
    if layer.kind == "small":
        canvas.rectangles.append(Rectangle(x, y, width, TITLE, "small"))
        text = f"{layer.title} · {layer.facts.partition(' · ')[0]}" if layer.facts else layer.title
        canvas.text(x + PAD, y + TITLE - 6, text, "line", chars)
        return y + TITLE
    height = TITLE + LINE + LINE * len(layer.operations) + 6
    canvas.rectangles.append(Rectangle(x, y, width, height, layer.kind))
    canvas.text(x + PAD, y + TITLE - 4, layer.title, "title", chars)
    canvas.text(x + PAD, y + TITLE + LINE - 3, layer.facts, "facts", chars)
    for number, line in enumerate(layer.operations, 2):
        canvas.text(x + PAD, y + TITLE + LINE * number - 2, line, "line", chars)
    return y + height


def to_png(svg: str) -> bytes:
    """An SVG as PNG, twice as large, in its light colors. Raises UserError without the library that draws it."""
    try:
        import resvg_py
    except ImportError:
        hint = "pip install 'l4spec[png]', or choose --format svg"
        raise UserError("PNG needs resvg-py", hint=hint) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))


__all__ = ["Arrow", "Canvas", "Label", "Rectangle", "about", "canvas_of", "to_png", "to_svg"]
