"""YAML structure: every trap is named at its place, and no text takes long or breaks the reader."""

from functools import partial

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l4spec.errors import MAX_PROBLEMS, Place, Problem, SpecError
from l4spec.spec import yaml_tree
from l4spec.spec.tree import Data, dotted, places, plain
from l4spec.spec.yaml_tree import MAX_DEPTH, MAX_KEY_LENGTH, MAX_NODES, compose
from tests.cpu_time import takes_at_most

AT = partial(Place, "spec.yaml")


def read(text: str) -> Data:
    return plain(compose(text, AT))


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        compose(text, AT)
    return caught.value.problems


REFUSED = {
    "duplicate key": ("a: 1\nb:\n  c: 1\n  c: 2\n", "spec.yaml:4:3: b.c: this key is written twice (first on line 3"),
    "merge key": ("a: &a {b: 1}\nc: {<<: *a}\n", "spec.yaml:2:5: c: merge keys are not supported (write `extends"),
    "recursive alias": ("a: &a [1, *a]\n", "spec.yaml:1:11: a[1]: the alias *a is inside its own anchor"),
    "unknown alias": (
        "a: &moe 1\nb: *mo\n",
        "spec.yaml:2:4: b: expected an anchor &mo before its alias (did you mean 'moe'?",
    ),
    "anchor twice": ("a: &a 1\nb: &a 2\n", "spec.yaml:2:4: b: the anchor &a is defined twice"),
    "python tag": (
        "a: !!python/object:os.system x\n",
        "a: expected a value without tag, found '!!python/object:os.system'",
    ),
    "own tag": ("a: !mine {b: 1}\n", "spec.yaml:1:4: a: expected a value without tag, found '!mine'"),
    "number as key": ("a:\n  1: x\n", "spec.yaml:2:3: a: expected a name as key, found 1 (quote it"),
    "null as key": ("~: x\n", "spec.yaml:1:1: expected a name as key, found null"),
    "list as key": ("? [a]\n: 1\n", "spec.yaml:1:3: expected a name as key, found a list or mapping"),
    "trap as key": ("010: x\n", "spec.yaml:1:1: ?: expected a clear value, found 010"),
    "long key": (f"? {'k' * 201}\n: 1\n", f"expected a key of at most {MAX_KEY_LENGTH} characters, found one of 201"),
    "two documents": ("a: 1\n---\nb: 2\n", "spec.yaml:2:1: expected the end of the file, found a second document"),
    "two documents, ended": ("a: 1\n...\nb: 2\n", "spec.yaml:3:1: not YAML: did not find expected <document start>"),
    "empty": ("", "spec.yaml:1:1: expected a value, found nothing"),
    "comment alone": ("# nothing\n", "expected a value, found nothing"),
    "tab": (
        "a:\n\tb: 1\n",
        "spec.yaml:2:1: not YAML: found character that cannot start any token while scanning for the next token (",
    ),
    "reserved": ("a: @b\n", "(quote text that starts with @)"),
    "open bracket": ("a: {b: 1\n", "spec.yaml:2:1: not YAML: did not find expected ',' or '}'"),
    "colon in text": (
        "a: b: c\n",
        "spec.yaml:1:5: not YAML: mapping values are not allowed in this context (quote text",
    ),
    "NUL": ("a: 1\nb: \0\n", "spec.yaml:2:4: expected text, found the character U+0000"),
    "hidden line break": ("a: x\u2028b: y\n", "spec.yaml:1:5: expected text, found the character U+2028"),
    "hidden mark": ("a: \ufeff1\n", "spec.yaml:1:4: expected text, found the character U+FEFF"),
    "surrogate": ("a: '\ud800'\n", "spec.yaml:1:5: expected text, found the character U+D800"),
    "escaped control": ('a: "\\e[31m"\n', "spec.yaml:1:4: a: expected printable text, found U+001B in a string"),
    "newest YAML": ("%YAML 3.0\n---\na: 1\n", "spec.yaml:1:1: not YAML: found incompatible YAML document"),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_a_trap_is_refused_at_its_place(text: str, expected: str) -> None:
    assert expected in str(problems(text)[0])


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    all_problems = problems("a: on\nb: [1_000, 010]\nb: 1\nc: {d: .nan, <<: 1}\n")
    assert [(problem.path, problem.place) for problem in all_problems] == [
        ("a", AT(1, 4)),
        ("b[0]", AT(2, 5)),
        ("b[1]", AT(2, 12)),
        ("b", AT(3, 1)),
        ("c.d", AT(4, 8)),
        ("c", AT(4, 14)),
    ]


def test_problems_before_a_syntax_error_are_kept() -> None:
    assert [problem.path for problem in problems("a: on\nb: {c\n")] == ["a", ""]


def test_problems_are_counted_out_at_the_limit() -> None:
    all_problems = problems("a: [" + "on, " * 1000 + "]")
    assert len(all_problems) == MAX_PROBLEMS + 1
    assert "stopped after" in all_problems[-1].message


def test_words_like_on_are_plain_names_where_a_key_stands() -> None:
    assert read("on: 1xH100\nn: 2\n") == {"on": "1xH100", "n": 2}


def test_quoted_scalars_are_text_whatever_they_look_like() -> None:
    assert read("a: 'on'\nb: \"010\"\nc: '<<'\n'1': |\n  5e5\n") == {"a": "on", "b": "010", "c": "<<", "1": "5e5\n"}


def test_an_alias_repeats_the_value_and_its_keys_keep_their_place() -> None:
    tree = compose("a: &x\n  b: 1\nc: *x\n", AT)
    assert plain(tree) == {"a": {"b": 1}, "c": {"b": 1}}
    assert places(tree)["c",] == AT(3, 1)
    assert places(tree)["c", "b"] == AT(2, 3)


def test_an_alias_gives_a_copy_that_shares_nothing() -> None:
    data = read("a: &x [1]\nb: *x\n")
    assert isinstance(data, dict)
    assert data["a"] is not data["b"]


def test_nesting_is_allowed_to_the_limit_and_not_beyond() -> None:
    read("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert f"at most {MAX_DEPTH} levels" in problems("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))[0].message


def test_aliases_cannot_nest_beyond_the_limit() -> None:
    half = "[" * 40 + "]" * 40
    assert f"at most {MAX_DEPTH} levels" in problems(f"a: &a {half}\nb: {'[' * 40}*a{']' * 40}")[0].message


@pytest.mark.parametrize("extra", [0, 1])
def test_values_are_counted_with_aliases_written_out(extra: int) -> None:
    fixed = 1 + (1 + 1 + 99) + (1 + 1)  # the mapping; key, list and items of a; key and list of b
    num_copies, num_rest = divmod(MAX_NODES - fixed, 100)
    items = ["*a"] * num_copies + ["1"] * (num_rest + extra)
    text = f"a: &a [{', '.join(['1'] * 99)}]\nb: [{', '.join(items)}]\n"
    if extra:
        assert "at most 100,000 values" in problems(text)[0].message
    else:
        read(text)


BOMBS = {
    "billion laughs": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    "brackets": "[" * 100_000,
    "braces": "{a: " * 100_000,
    "dashes": "- " * 100_000,
    "questions": "? " * 100_000,
    "many values": "a: [" + "1," * 500_000,
    "many anchors": "".join(f"a{i}: &a{i} 1\n" for i in range(50_000)),
    "many duplicates": "a: 1\n" * 200_000,
    "long integer": "a: " + "1" * 1_000_000,
    "long float": "a: 1." + "1" * 1_000_000,
    "long alias": "a: *" + "b" * 1_000_000,
    "long tag": "a: !" + "b" * 1_000_000,
    "long key": "? " + "k" * 1_000_000,
    "long directive": "%" * 1_000_000,
    "unclosed flows": "a: [b, c\n" * 100_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_within_a_second_in_few_words(text: str) -> None:
    assert takes_at_most(1, lambda: problems(text))
    all_problems = problems(text)
    assert sum(len(str(problem)) for problem in all_problems) < 10_000


HARMLESS_GIANTS = {
    "almost sexagesimal": "1" + ":1" * 400_000 + "x",
    "almost a number": "1_" * 400_000 + "x",
    "dots": "-." * 400_000,
}


@pytest.mark.parametrize("scalar", HARMLESS_GIANTS.values(), ids=HARMLESS_GIANTS.keys())
def test_no_scalar_takes_long_to_tell_apart(scalar: str) -> None:
    assert read(f"a: {scalar}\n") == {"a": scalar}
    assert takes_at_most(1, lambda: read(f"a: {scalar}\n"))


WRITABLE = st.characters(
    exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\ufeff\ufffe\uffff"
) | st.just("\n")
KEYS = st.text(WRITABLE, max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(WRITABLE, max_size=40)
    | st.sampled_from(["on", "5e5", "010", "1:30", "1_000", "2025-04-05", ".nan", "<<", "=", "~", "", "0x1F", "n"])
)
VALUES: st.SearchStrategy[Data] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


@given(VALUES, st.sampled_from([None, True, False]))
def test_what_a_yaml_writer_dumps_is_read_back(data: Data, flow: bool | None) -> None:
    text = yaml.safe_dump(_spelled_for_every_yaml(data), default_flow_style=flow, allow_unicode=True, width=10_000)
    assert read(text) == data


class Clear(str):
    """Text written in double quotes."""


def _spelled_for_every_yaml(data: Data) -> object:
    """`data` with text and keys quoted: PyYAML leaves text unquoted that YAML 1.2 reads as something else (`5e5`)."""
    if isinstance(data, dict):
        return {Clear(key): _spelled_for_every_yaml(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_spelled_for_every_yaml(value) for value in data]
    return Clear(data) if isinstance(data, str) else data


yaml.SafeDumper.add_representer(
    Clear, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)

TOKENS = [
    "a",
    "b",
    ": ",
    "- ",
    "\n",
    "\n  ",
    " ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "!!str ",
    "!x ",
    "'",
    '"',
    "|\n",
]
TOKENS += [
    ">",
    "#",
    "?",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "<<",
    "1",
    "on",
    "\t",
    "\\",
    "\r",
    "\r\n",
    "\0",
    "\u2028",
    "~",
]
TOKENS += ["@", "`", '"\\U110000"', '"\\ud800"', "\ufeff"]
YAML_LIKE = st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml_tree._LOADER], ids=["python", "libyaml"])
@given(text=st.text(max_size=60) | YAML_LIKE)
@example(text='a: "\\UFFFFFFFF"')
@example(text="%YAML " + "9" * 5000 + ".1\n---\na: 1")
@settings(deadline=1000, max_examples=300)
def test_any_text_is_read_or_refused_with_a_place(loader: type[yaml.SafeLoader], text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_tree, "_LOADER", loader)
        try:
            all_places = list(places(compose(text, AT)).values())
        except SpecError as error:
            all_places = [problem.place for problem in error.problems if problem.place]
    assert all_places
    assert all(place.line and 1 <= place.line <= len(text.splitlines()) + 1 for place in all_places)


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-m]{1,6}", fullmatch=True), st.integers(0, 3)),
        unique_by=lambda pair: pair[0],
        min_size=1,
    )
)
def test_places_point_at_the_line_and_column_of_each_key(keys: list[tuple[str, int]]) -> None:
    lines: list[str] = []
    expected: dict[str, Place] = {}
    for key, num_blank in keys:
        lines += [""] * num_blank
        lines.append(f"{key}:")
        expected[key] = AT(len(lines), 1)
        lines.append(f"  - {{inner_{key}: 1}}")
        expected[f"{key}[0]"] = AT(len(lines), 5)
        expected[f"{key}[0].inner_{key}"] = AT(len(lines), 6)
    by_path = {dotted(path): place for path, place in places(compose("\n".join(lines), AT)).items() if path}
    assert by_path == expected


def test_columns_count_characters_not_bytes() -> None:
    assert places(compose("{é: 1, ü𝄞: 2}", AT))["ü𝄞",] == AT(1, 8)
