"""The picture of the packages follows the import contracts, the table beside it, and the imports themselves."""

from pathlib import Path

from website.packages import drawn, imports, packages, places, stages

ROOT = Path(__file__).parents[2]


def test_the_picture_of_the_packages_is_the_one_drawn_from_contracts_and_table() -> None:
    written = (ROOT / "docs" / "pictures" / "packages.svg").read_text(encoding="utf-8")
    assert written == drawn(), "run: python -m website.packages > docs/pictures/packages.svg"


def test_a_package_stands_below_every_package_that_it_imports() -> None:
    boxes, _ = places()
    pairs = imports(list(packages()))
    assert len(pairs) >= 100
    assert [pair for pair in pairs if boxes[pair[0]].y + boxes[pair[0]].height > boxes[pair[1]].y] == []


def test_every_package_of_the_contract_has_one_box_and_no_two_boxes_overlap() -> None:
    boxes, frames = places()
    assert set(boxes) == set(packages())
    drawn_stages = {name for stage in stages() for name in stage} - {"planners"}
    assert drawn_stages <= set(boxes)
    rectangles = list(boxes.values())
    for number, one in enumerate(rectangles):
        for other in rectangles[:number]:
            apart = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y
    outside = [box for name, box in boxes.items() if not name.startswith("planners.")]
    assert all(
        box.y >= f.y + f.height or box.y + box.height <= f.y or box.x >= f.x + f.width
        for f in frames
        for box in outside
    )


def test_the_picture_adapts_to_dark_screens_and_says_in_words_what_it_shows() -> None:
    svg = drawn()
    assert "prefers-color-scheme: dark" in svg
    assert all(f"{name.replace('.', '/')}: " in svg for name in packages())
