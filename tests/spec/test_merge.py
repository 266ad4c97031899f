"""`extends`: what is inherited, where the values come from, and chains that cannot be followed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec import library
from l4spec.errors import Place, SpecError
from l4spec.spec.document import Document, load_document
from l4spec.spec.merge import MAX_LEVELS, merge
from l4spec.spec.tree import Data, Tree, places, plain

HERE, THERE = Place("child.yaml", 1, 1), Place("parent.yaml", 1, 1)
VALUES: st.SearchStrategy[Data] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def tree(data: Data, place: Place = HERE) -> Tree:
    if isinstance(data, dict):
        return Tree({key: tree(value, place) for key, value in data.items()}, place)
    if isinstance(data, list):
        return Tree([tree(item, place) for item in data], place)
    return Tree(data, place)


def merged(parent: Data, child: Data) -> Data:
    return plain(merge(tree(parent, THERE), tree(child)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a shelf of one shipped spec, `scout`, elsewhere."""
    shelf = tmp_path / "package" / "_specs"
    shelf.mkdir(parents=True)
    (shelf / "scout.yaml").write_text("l4spec: 1\nname: scout-17b\ntext: {hidden_size: 5120}\nvision: {size: 336}\n")
    monkeypatch.setattr(library, "_PACKAGE", tmp_path / "package")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def load(folder: Path, **texts: str) -> Document:
    """Write `NAME.yaml` for every text, and load the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return load_document(f"{next(iter(texts))}.yaml")


@given(MAPPINGS)
def test_an_empty_child_changes_nothing(parent: dict[str, Data]) -> None:
    assert merged(parent, {}) == parent


@given(MAPPINGS)
def test_an_empty_parent_adds_nothing(child: dict[str, Data]) -> None:
    assert merged({}, child) == child


@given(MAPPINGS)
def test_a_spec_merged_with_itself_stays_itself(data: dict[str, Data]) -> None:
    assert merged(data, data) == data


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_merging_is_associative(first: dict[str, Data], second: dict[str, Data], third: dict[str, Data]) -> None:
    assert merged(merged(first, second), third) == merged(first, merged(second, third)) or _replaced(
        first, second, third
    )


def _replaced(*levels: Data) -> bool:
    """Whether a middle level replaces a mapping by something else, which a later mapping then does not merge into."""
    first, second, third = levels
    if not isinstance(second, dict):
        return isinstance(first, dict) and isinstance(third, dict)
    if not isinstance(first, dict) or not isinstance(third, dict):
        return False
    return any(_replaced(first[key], second[key], third[key]) for key in first.keys() & second.keys() & third.keys())


@given(MAPPINGS, MAPPINGS)
def test_every_value_keeps_the_place_where_it_was_written(parent: dict[str, Data], child: dict[str, Data]) -> None:
    both = merge(tree(parent, THERE), tree(child))
    written_by_child = places(tree(child)).keys()
    for path, place in places(both).items():
        assert place == (HERE if path in written_by_child else THERE)


def test_lists_and_scalars_replace() -> None:
    assert merged({"a": [1, 2], "b": 1, "c": {"d": 1}}, {"a": [3], "b": {"x": 1}, "c": 5}) == {
        "a": [3],
        "b": {"x": 1},
        "c": 5,
    }


def test_an_explicit_null_replaces() -> None:
    assert merged({"vision": {"a": 1}}, {"vision": None}) == {"vision": None}


def test_another_kind_replaces_the_whole_mapping_and_the_same_kind_merges() -> None:
    parent: Data = {"ffn": {"kind": "moe", "num_experts": 16}}
    assert merged(parent, {"ffn": {"kind": "swiglu", "size": 8}}) == {"ffn": {"kind": "swiglu", "size": 8}}
    assert merged(parent, {"ffn": {"kind": "moe", "size": 8}}) == {"ffn": {"kind": "moe", "num_experts": 16, "size": 8}}
    assert merged(parent, {"ffn": {"num_experts": 32}}) == {"ffn": {"kind": "moe", "num_experts": 32}}


def test_a_variant_of_a_shipped_spec_is_a_few_lines(folder: Path) -> None:
    document = load(folder, mine="extends: scout\nvision: null\n")
    assert document.data == {
        "name": "mine",
        "l4spec": 1,
        "text": {"hidden_size": 5120},
        "vision": None,
        "extends": "scout",
    }
    assert [path.name for path in document.extends] == ["scout.yaml"]
    assert document.places["vision",] == Place("mine.yaml", 2, 1)
    assert document.places["text", "hidden_size"].file.endswith("_specs/scout.yaml")
    assert document.places["text", "hidden_size"].line == 3


def test_what_is_said_about_the_parent_alone_is_not_inherited(folder: Path) -> None:
    document = load(
        folder, child="extends: parent.yaml\n", parent="name: p\ndescription: d\nsources: [s]\nclaims: [c]\na: 1\n"
    )
    assert document.data == {"name": "child", "extends": "parent.yaml", "a": 1}


def test_estimated_fields_add_up_along_the_chain(folder: Path) -> None:
    document = load(
        folder,
        child="extends: middle.yaml\nestimated: [c, a]\n",
        middle="extends: parent.yaml\n",
        parent="estimated: [a, b]\n",
    )
    assert document.data["estimated"] == ["a", "b", "c"]
    assert document.places["estimated", 1] == Place("parent.yaml", 1, 16)
    assert document.places["estimated", 2] == Place("child.yaml", 2, 13)


def test_the_chain_is_remembered_nearest_parent_first(folder: Path) -> None:
    document = load(folder, a="extends: b.yaml\nx: 1\n", b="extends: c.yaml\nx: 2\ny: 2\n", c="x: 3\ny: 3\nz: 3\n")
    assert [path.name for path in document.extends] == ["b.yaml", "c.yaml"]
    assert {key: document.data[key] for key in "xyz"} == {"x": 1, "y": 2, "z": 3}


def test_a_path_is_relative_to_the_file_that_extends(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "middle.yaml").write_text("extends: ../top.yaml\n")
    assert load(folder, child="extends: base/middle.yaml\n", top="a: 1\n").data["a"] == 1


def test_a_file_beside_wins_over_a_shipped_spec_of_its_name(folder: Path) -> None:
    own = load(folder, child="extends: scout.yaml\n", scout="extends: scout\nown: true\n")
    assert own.data["own"] is True
    assert own.data["text"] == {"hidden_size": 5120}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nextends: scuot\n", "child.yaml:2:1: extends: no spec named 'scuot', neither a file nor a shipped spec"),
        ("extends: chidl.yaml\n", "(did you mean 'child.yaml'?)"),
        ("extends: Scout-\n", "(did you mean 'scout'?)"),
        ("extends: [a]\n", "child.yaml:1:1: extends: expected the name or the path of one spec, found a list"),
        ("extends: 5\n", "found 5"),
        ("extends: ''\n", "expected the name or the path of a spec, found nothing"),
        ("extends: ..\n", "expected a spec, found the folder '..'"),
        ('extends: "a\\nb"\n', "no spec named 'a\\nb'"),
        (f"extends: {'x' * 5000}\n", "no spec named 'xxx"),
        (f"extends: {'x/' * 5000}\n", "no spec named 'x/x"),
    ],
)
def test_a_parent_that_is_not_there_is_named_at_the_extends_key(folder: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(folder, child=text)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_null_extends_nothing(folder: Path) -> None:
    assert load(folder, child="extends: null\n").extends == ()


def test_a_circle_is_refused_naming_all_of_it(folder: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(folder, start="extends: a.yaml", a="extends: b.yaml\n", b="x: 1\nextends: ./a.yaml\n")
    assert str(caught.value) == (
        "b.yaml:2:1: extends: expected an end to what extends what, found a circle: a.yaml → b.yaml → a.yaml"
    )


def test_a_spec_cannot_extend_itself_through_a_link(folder: Path) -> None:
    (folder / "link.yaml").symlink_to("a.yaml")
    with pytest.raises(SpecError, match=r"circle: a\.yaml → link\.yaml"):
        load(folder, a="extends: link.yaml")


def test_chains_are_followed_to_the_limit_and_not_beyond(folder: Path) -> None:
    chain = {f"s{i}": f"extends: s{i + 1}.yaml\n" for i in range(MAX_LEVELS)}
    assert len(load(folder, **chain, **{f"s{MAX_LEVELS}": "a: 1\n"}).extends) == MAX_LEVELS
    with pytest.raises(SpecError, match=f"s{MAX_LEVELS}.yaml:1:1: extends: expected at most {MAX_LEVELS} levels"):
        load(folder, **chain, **{f"s{MAX_LEVELS}": "extends: scout\n"})


def test_problems_in_a_parent_are_placed_in_the_parent(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"^b\.yaml:2:4: y: expected"):
        load(folder, a="extends: b.yaml\n", b="x: 1\ny: on\n")


def test_merging_leaves_both_trees_alone() -> None:
    parent, child = tree({"a": {"b": 1}}, THERE), tree({"a": {"c": 2}, "d": 3})
    merge(parent, child)
    assert (plain(parent), plain(child)) == ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})
