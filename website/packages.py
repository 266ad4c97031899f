"""The picture of docs/architecture.md: every package of ours, below all that it imports.

`python -m website.packages > docs/pictures/packages.svg` draws it again from three things: the table on that page,
the layers of the import contract `stages` in pyproject.toml, and the imports inside `planners`.
"""

import ast
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import networkx as nx

from l4spec.report.drawing import Canvas, Rectangle
from l4spec.report.templating import render

ROOT = Path(__file__).parents[1]
BESIDE_PLANNERS = "l4spec.training"
"""The contract puts it after planners and runtime; it stands under runtime, since it imports no planner."""

WIDTH, GAP, PAD, LINE, TOP = 1000, 24, 12, 14, 64
_PLANNERS_WIDTH = 690
_TENTH_PIXELS = 67
"""Ten characters' width, in pixels."""
_LEGEND = (
    "Values flow down; a package imports only packages above it. Orange packages and layers/*/module.py import torch."
)
_ROW = re.compile(r"^\| `(?P<package>(?:l4spec|planners)/[a-z_]+)/` \|(?P<cells>.*)\|$", re.MULTILINE)


class Package(NamedTuple):
    """A row of the page's table."""

    question: str
    gives: str


@cache
def packages() -> dict[str, Package]:
    """The packages of the page by their Python names."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {row["package"].replace("/", "."): row["cells"].split("|") for row in _ROW.finditer(page)}
    return {name: Package(cells[0].strip(), cells[2].strip().replace("`", "")) for name, cells in rows.items()}


def imports(names: Sequence[str]) -> set[tuple[str, str]]:
    """(imported, importing) for every pair of the packages of which one imports the other."""
    pairs = set()
    for name in names:
        for path in (ROOT / name.replace(".", "/")).rglob("*.py"):
            for module in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                package = ".".join(module.split(".")[:2])
                if package in names and package != name:
                    pairs.add((package, name))
    return pairs


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def stages() -> list[list[str]]:
    """The layers of the import contract that hold packages or `planners`, what is imported first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [each for each in project["tool"]["importlinter"]["contracts"] if each["id"] == "stages"]
    named = [[name.strip(" ()") for name in re.split(r"[|:]", layer)] for layer in reversed(contract["layers"])]
    known = {*packages(), "planners"}
    return [stage for layer in named if (stage := [name for name in layer if name in known])]


def places() -> tuple[dict[str, Rectangle], list[Rectangle]]:
    """The box of every package, and the frames around several; a package stands below each package that it imports."""
    boxes: dict[str, Rectangle] = {}
    frames: list[Rectangle] = []
    y = TOP
    for stage in stages():
        if stage == [BESIDE_PLANNERS]:
            runtime = boxes["l4spec.runtime"]
            _row(boxes, stage, (runtime.x, runtime.y + runtime.height + GAP, runtime.width), "experts")
        elif "planners" in stage:
            x = GAP + _PLANNERS_WIDTH + GAP
            _row(boxes, ["l4spec.runtime"], (x, y, WIDTH - GAP - x), "experts")
            frames.append(_planners(boxes, y))
            y += frames[-1].height + GAP
        else:
            y = _row(boxes, stage, (GAP, y, WIDTH - 2 * GAP), "attention") + GAP
    return boxes, frames


def _row(boxes: dict[str, Rectangle], names: Sequence[str], place: tuple[int, int, int], style: str) -> int:
    """Places packages side by side at (x, y, width), all as high as the highest needs; returns where they end."""
    x, y, whole = place
    width = (whole - GAP * (len(names) - 1)) // len(names)
    height = max(len(_lines(name, width)) for name in names) * LINE + 8
    for number, name in enumerate(names):
        boxes[name] = Rectangle(x + number * (width + GAP), y, width, height, style)
    return y + height


def _lines(name: str, width: int) -> list[tuple[str, str]]:
    """The name, the question and what the package gives, each in as many lines as it needs, with their styles."""
    package, most = packages()[name], (width - 2 * PAD) * 10 // _TENTH_PIXELS
    question, gives = (textwrap.wrap(text, most) for text in (package.question, f"gives {package.gives}"))
    styled = [("line", line) for line in question] + [("facts", line) for line in gives]
    return [("block", name.replace(".", "/") + "/"), *styled]


def planner_flows() -> "nx.DiGraph[str]":
    """The imports among the planners' packages, without those that follow from others."""
    names = [name for name in packages() if name.startswith("planners.")]
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(sorted(imports(names)))
    reduced: nx.DiGraph[str] = nx.transitive_reduction(graph)
    return reduced


def _planners(boxes: dict[str, Rectangle], top: int) -> Rectangle:
    """Places the planners' packages in rows, each below the rows that it imports; returns their frame."""
    y = top + PAD + LINE
    for row in nx.topological_generations(planner_flows()):
        names = sorted(row, key=list(packages()).index)
        y = _row(boxes, names, (GAP + PAD, y, _PLANNERS_WIDTH - 2 * PAD), "ffn") + GAP
    return Rectangle(GAP, top, _PLANNERS_WIDTH, y - GAP + PAD - top, "fold")


def _arrows(canvas: Canvas, boxes: dict[str, Rectangle], frames: Sequence[Rectangle]) -> None:
    """A short arrow into every box from the stage above it, and one for each flow among the planners."""
    for source, target in sorted(planner_flows().edges):
        above, below = boxes[source], boxes[target]
        begin, end = above.x + above.width // 2, below.x + below.width // 2
        bend = below.y - GAP // 2
        canvas.arrow((begin, above.y + above.height), (begin, bend), (end, bend), (end, below.y - 1))
    framed = [box for name, box in boxes.items() if not name.startswith("planners.")]
    for box in (*framed, *frames):
        if box.y > TOP:
            middle = box.x + box.width // 2
            canvas.arrow((middle, box.y - GAP + 2), (middle, box.y - 1))


def drawn() -> str:
    """The picture as SVG, in light and dark."""
    boxes, frames = places()
    canvas = Canvas(rectangles=[*frames, *boxes.values()])
    _arrows(canvas, boxes, frames)
    canvas.text(GAP, 26, "The packages of l4spec", "name", 80)
    canvas.text(GAP, 44, _LEGEND, "facts", len(_LEGEND))
    for frame in frames:
        canvas.text(frame.x + PAD, frame.y + LINE, "planners (no torch)", "fold", 40)
    for name, box in boxes.items():
        for number, (style, line) in enumerate(_lines(name, box.width), 1):
            canvas.text(box.x + PAD, box.y + LINE * number, line, style, len(line))
    height = max(box.y + box.height for box in boxes.values()) + GAP
    about = "; ".join(f"{name.replace('.', '/')}: {package.question}" for name, package in packages().items())
    return render("model.svg.j2", about=about, canvas=canvas, name="The packages of l4spec", width=WIDTH, height=height)


if __name__ == "__main__":
    sys.stdout.write(drawn())
