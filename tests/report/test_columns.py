"""Text of so many columns: no line is longer, no word is lost, and what is narrow already stays as it is."""

from hypothesis import given
from hypothesis import strategies as st

from l4spec.report.columns import Cells, fitted, wrapped
from l4spec.report.page import Bar, Bars, Details, Facts, Lines, Page, Section, Table, to_text

WORDS = st.lists(st.text("abcdefg0123456789.", min_size=1, max_size=9), max_size=12).map(" ".join)
NUMBERS = st.sampled_from(["1", "12.50 GiB", "1,048,576"])


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Tables of up to nine columns of words and numbers."""
    size = draw(st.integers(1, 9))
    align = "l" + draw(st.text("lr", min_size=size - 1, max_size=size - 1))
    headers = tuple(draw(st.text("hij", min_size=1, max_size=8)) for _ in align)
    num_rows = draw(st.integers(0, 3))
    rows = tuple(tuple(draw(NUMBERS if side == "r" else WORDS) for side in align) for _ in range(num_rows))
    return Table(headers, rows, align, draw(st.sampled_from([None, 20])))


@given(table=tables(), width=st.integers(40, 160))
def test_a_table_fits_its_width_and_loses_no_word(table: Table, width: int) -> None:
    text = to_text((Section("", (table,)),), width)
    assert max(map(len, text.splitlines())) <= width
    for cell in (*table.headers, *(cell for row in table.rows for cell in row)):
        assert [word for word in cell.split() if word not in text] == []


@given(line=WORDS, width=st.integers(20, 80), hanging=st.integers(0, 6))
def test_a_wrapped_line_says_the_same_words_within_its_width(line: str, width: int, hanging: int) -> None:
    pieces = wrapped(line, width, hanging)
    assert " ".join(pieces).split() == line.split()
    assert all(len(piece) <= width for piece in pieces)


def test_a_page_of_every_block_fits() -> None:
    long = "word " * 40
    page: Page = (
        Section("A title of its own that goes on " * 4, (Lines((long,)), Facts((("label", long), ("b", "1"))))),
        Section("Bars", (Bars((Bar("used", "1 GiB", 1), Bar("what is left", "3.00 GiB", 3, hollow=True)), 4),)),
        Section("", (Details("model", long, (Table(("a", "b"), (("x", long),), "ll"),)),)),
    )
    for width in (40, 60, 80, 100):
        assert max(map(len, to_text(page, width).splitlines())) <= width


def test_a_wrapped_command_can_be_typed() -> None:
    command = "l4spec plan scout " + "--set text.parts.moe.num_experts=32 " * 5
    for page in ((Section("", (Lines((command,)),)),), (Section("", (Facts((("check", command),)),)),)):
        lines = to_text(page, 60).splitlines()
        assert max(map(len, lines)) <= 60
        typed = " ".join(line.removesuffix("\\").strip() for line in lines).removeprefix("check ").strip()
        assert typed == command.strip()
        assert all(line.endswith(" \\") for line in lines[:-1])


def test_without_a_width_nothing_is_wrapped_and_a_narrow_table_is_the_same_at_any() -> None:
    assert wrapped("x " * 200, None) == ["x " * 200]
    table = Cells(("a", "b"), (("1", "2"),), "l", None)
    (unlimited,), (limited,) = fitted(table, None), fitted(table, 100)
    assert (unlimited.headers, unlimited.rows) == (limited.headers, limited.rows)


def test_a_verdict_is_coloured_only_where_colours_are_asked_for() -> None:
    page: Page = (Section("", (Lines(("it fits", "because"), "good"), Lines(("no",), "bad"))),)
    assert to_text(page) == "it fits\nbecause\nno\n"
    assert to_text(page, colored=True) == "\033[32mit fits\033[0m\nbecause\n\033[31mno\033[0m\n"
