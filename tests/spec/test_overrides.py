"""`--set path=value`: what can be set, and what is said when it cannot."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from l4spec.errors import Place, Problem, SpecError
from l4spec.spec.document import load_document
from l4spec.spec.overrides import override
from l4spec.spec.parse import parse_spec
from l4spec.spec.tree import Data, Tree, dotted, places, plain
from l4spec.spec.yaml_tree import compose

SPEC = """
name: x
text:
  hidden_size: 5120
  parts:
    moe: {kind: moe, num_experts: 16}
  layers:
    - repeat: 12
    - repeat: 1
  empty: []
vision: null
"""


def spec() -> Tree:
    return compose(SPEC, lambda line, column: Place("spec.yaml", line, column))


def at(tree: Tree, *path: str | int) -> Data:
    data = plain(tree)
    for step in path:
        data = data[step]  # type: ignore[index]
    return data


def problem(*texts: str) -> str:
    with pytest.raises(SpecError) as caught:
        override(spec(), texts)
    return str(caught.value)


def test_a_value_is_set_with_the_option_as_its_place() -> None:
    changed = override(spec(), ["text.parts.moe.num_experts=32"])
    assert at(changed, "text", "parts", "moe") == {"kind": "moe", "num_experts": 32}
    by_path = places(changed)
    assert str(by_path["text", "parts", "moe", "num_experts"]) == "--set text.parts.moe.num_experts"
    assert by_path["text", "parts", "moe", "kind"] == Place("spec.yaml", 6, 11)


@pytest.mark.parametrize("path", ["text.layers[1].repeat", "text.layers.1.repeat"])
def test_list_items_are_reached_by_index(path: str) -> None:
    assert at(override(spec(), [f"{path}=6"]), "text", "layers") == [{"repeat": 12}, {"repeat": 6}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("true", True),
        ("1.0e-5", 1e-5),
        ("a=b", "a=b"),
        (" 7 ", 7),
        ("'on'", "on"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("80 GiB", "80 GiB"),
        ("''", ""),
    ],
)
def test_values_are_read_as_in_a_file(text: str, value: Data) -> None:
    assert at(override(spec(), [f"name={text}"]), "name") == value


def test_a_mapping_merges_as_extends_does() -> None:
    assert at(override(spec(), ["text.parts.moe={top: 2}"]), "text", "parts", "moe") == {
        "kind": "moe",
        "num_experts": 16,
        "top": 2,
    }
    assert at(override(spec(), ["text.parts.moe={kind: mlp}"]), "text", "parts", "moe") == {"kind": "mlp"}


def test_missing_keys_are_made_for_the_schema_to_judge() -> None:
    changed = override(spec(), ["text.norm.eps=1.0e-6"])
    assert at(changed, "text", "norm") == {"eps": 1e-6}
    assert str(places(changed)["text", "norm"]) == "--set text.norm.eps"


def test_later_overrides_build_on_earlier_ones() -> None:
    assert at(override(spec(), ["vision={a: {b: 1}}", "vision.a.b=2", "vision.a.c=3"]), "vision", "a") == {
        "b": 2,
        "c": 3,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name", "--set name: expected a path and a value, found 'name' (write path=value"),
        ("=5", "expected a path and a value"),
        ("a..b=5", "expected a path and a value"),
        ("a[b]=5", "expected a path and a value"),
        ("[0]=5", "expected a path and a value"),
        ("text.layers[-1].repeat=5", "expected a path and a value"),
        ("name=", "--set name: name: expected a value, found nothing (write null to drop a field"),
        ("name=# x", "--set name: name: expected a value, found nothing"),
        ("name=on", "--set name: name: expected a value, found on: a boolean"),
        ("text.parts.moe={a: 5e5}", "--set text.parts.moe: text.parts.moe.a: expected a clear value, found 5e5"),
        ("text={a", "--set text: text: not YAML: did not find expected ',' or '}'"),
        ("name=a: b", "--set name: name: expected a value on one line, found 'a: b' (write a mapping as {key: value}"),
        ("name=- a", "expected a value on one line"),
        ("name=--- 5", "expected a value on one line"),
        ("name=5\n---\n6", "found a second document"),
        ("name=!!python/name:os.system ''", "expected a value without tag"),
        ("text.hidden_size.x=1", "text.hidden_size.x: expected a mapping or a list at text.hidden_size, found 5120"),
        ("vision.size=1", "vision.size: expected a mapping or a list at vision, found None"),
        ("text.layers[2].repeat=1", "expected an index of text.layers, 0 to 1; found 2"),
        ("text.layers.first.repeat=1", "expected an index of text.layers, 0 to 1; found 'first'"),
        ("text.empty[0]=1", "expected an index of text.empty, none, for it is empty; found 0"),
        ("text.parts[0]=1", "expected a key of text.parts, found [0] (one of: moe)"),
        ("text.layer[0].repeat=1", "expected a list, found no 'layer' in text (did you mean 'layers'?)"),
        ("extends=scout", "--set extends: extends: expected a field of the spec (name the other spec instead)"),
        (".".join("a" * 65) + "=1", "expected a path of at most 64 steps"),
        ("a" * 100_000 + "=1", "expected a path and a value"),
        ("text.layers." + "9" * 5000 + "=1", "expected an index of text.layers"),
    ],
)
def test_an_override_that_leads_nowhere_says_so(text: str, expected: str) -> None:
    refusal = problem(text)
    assert expected in refusal
    assert len(refusal) < 20_000


def test_the_problems_of_all_overrides_come_at_once() -> None:
    assert problem("name=on", "vision.size=1").count("\n") == 1


def test_overriding_leaves_the_tree_alone() -> None:
    tree = spec()
    override(tree, ["text.layers[0].repeat=1", "text.parts.moe.num_experts=1"])
    assert plain(tree) == plain(spec())


STEPS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(tuple)
VALUES = (
    st.integers(-(2**62), 2**62) | st.booleans() | st.none() | st.floats(0.5, 2.0).map(lambda value: round(value, 3))
)


@given(STEPS, VALUES)
def test_what_was_set_is_read_back(path: tuple[str, ...], value: Data) -> None:
    text = yaml.safe_dump([value], default_flow_style=True).strip()[1:-1]
    read_back = at(override(Tree({}, Place("spec.yaml")), [f"{dotted(path)}={text}"]), *path)
    assert (read_back, type(read_back)) == (value, type(value))


@given(st.text(max_size=40) | st.text("ab.[]01= {}:,-'\"\n", max_size=20))
def test_any_override_is_applied_or_refused_with_its_place(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        override(spec(), [text])
    except SpecError as error:
        problems = error.problems
    assert all(problem.place and problem.place.file.startswith("--set") for problem in problems)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("text.parts.moe.num_experts_per_token=32", "--set text.parts.moe.num_experts_per_token"),
        ("text.layers[0].repeat=100000000", "--set text.layers[0].repeat"),
    ],
)
def test_what_an_override_makes_wrong_of_a_whole_is_placed_at_the_override(text: str, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(load_document("scout", [text]))
    assert [str(problem.place) for problem in caught.value.problems] == [place]


def test_a_value_is_set_once() -> None:
    with pytest.raises(SpecError, match="is set twice"):
        load_document("scout", ["name=a", "name=b"])
