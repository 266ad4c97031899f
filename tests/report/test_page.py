"""Pages as text and as Markdown: nothing is lost, nothing is cut, ASCII suffices."""

from hypothesis import given
from hypothesis import strategies as st

from l4spec.report.page import (
    BAR_WIDTH,
    Bar,
    Bars,
    Code,
    Facts,
    Lines,
    Page,
    Section,
    Table,
    draw_bar,
    ranges,
    to_ascii,
    to_markdown,
    to_text,
)

PAGE: Page = (
    Section("", (Lines(("first", "second")),)),
    Section("Numbers", (Facts((("a", "1"), ("longer", "2"))), Table(("name", "n"), (("x|y", "3"),)))),
    Section("Drawn", (Bars((Bar("used", "1 GiB", 1), Bar("free", "3 GiB", 3, hollow=True)), 4), Code(("LLLG",)))),
)


def test_text_and_markdown_say_the_same_words() -> None:
    for text in (to_text(PAGE), to_markdown(PAGE)):
        for word in ("first", "second", "Numbers", "longer", "name", "used", "3 GiB", "LLLG"):
            assert word in text


def test_bars_share_one_scale() -> None:
    lines = to_text(PAGE).splitlines()
    used, free = (next(line for line in lines if name in line) for name in ("used", "free"))
    assert used.count("█") == BAR_WIDTH // 4
    assert free.count("░") == 3 * BAR_WIDTH // 4


def test_a_bar_in_a_markdown_cell_cannot_break_the_table() -> None:
    assert "x\\|y" in to_markdown(PAGE)


def test_a_table_without_rows_still_has_its_headers() -> None:
    assert "name" in to_text((Section("", (Table(("name", "n"), ()),)),))


def test_the_last_column_is_wrapped_on_a_terminal_only() -> None:
    table = Table(("name", "why"), (("x", "word " * 30),), "ll", wrap=40)
    assert max(len(line) for line in to_text((Section("", (table,)),)).splitlines()) <= 50
    assert len(to_markdown((Section("", (table,)),)).splitlines()) == 3


def test_the_ascii_page_is_ascii_and_as_wide() -> None:
    text = to_text(PAGE)
    plain = to_ascii(text)
    assert plain.isascii()
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in text.splitlines()]


@given(part=st.integers(0, 10**15), whole=st.integers(1, 10**15))
def test_a_bar_never_leaves_its_frame_and_shows_whatever_is_there(part: int, whole: int) -> None:
    bar = draw_bar(part, whole)
    assert len(bar) <= BAR_WIDTH + 1
    assert bool(bar) == (part > 0)
    assert bar.endswith("…") == (part > whole and bar.count("█") == BAR_WIDTH and len(bar) > BAR_WIDTH)


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_number_and_no_other(numbers: set[int]) -> None:
    listed: set[int] = set()
    for text in filter(None, ranges(sorted(numbers), most=100).split(", ")):
        first, _, last = text.partition("–")
        listed.update(range(int(first), int(last or first) + 1))
    assert listed == numbers


def test_long_ranges_are_cut_in_the_middle() -> None:
    assert ranges(range(3, 48, 4)) == "3, 7, 11, 15, …, 47"
