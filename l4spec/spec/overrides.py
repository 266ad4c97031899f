"""`--set path=value`: changes laid over a spec from the command line, with the value read as strictly as a file."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from l4spec.errors import Place, Problem, SpecError, nearest
from l4spec.spec.merge import merge
from l4spec.spec.tree import KeyPath, Tree, dotted, shortened
from l4spec.spec.yaml_tree import MAX_DEPTH, compose

MAX_LENGTH = 1 << 16
OPTION = "--set "
"""Prefix of the place of an override."""
_NAME = r"[^.\[\]\s]+"
_PATH = rf"{_NAME}(\.{_NAME}|\[[0-9]{{1,9}}\])*"
_STEP = rf"\[([0-9]+)\]|({_NAME})"
_EXAMPLE = "write path=value, like text.parts.moe.num_experts=32 or text.layers[0].repeat=6"


def override(tree: Tree, overrides: Iterable[str]) -> Tree:
    """`tree` with each `path=value` applied in turn.

    The last key of a path, and mappings on the way to it, may be new: the schema checks whether they exist. A mapping
    as value merges as `extends` does. Raises SpecError with the problems of all overrides.
    """
    problems: list[Problem] = []
    given: set[str] = set()
    for text in overrides:
        path = text.partition("=")[0].strip()
        if path in given:
            problems.append(Problem("is set twice", "", Place(f"{OPTION}{path[:200]}"), "leave one of them out"))
            continue
        given.add(path)
        try:
            tree = _apply(tree, text)
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return tree


def written(overrides: Sequence[str] | Mapping[str, Any]) -> Sequence[str]:
    """Overrides as the command line writes them; values of a mapping by path may be numbers, lists and mappings."""
    if not isinstance(overrides, Mapping):
        return overrides
    return [f"{path}={_in_a_line(path, value)}" for path, value in overrides.items()]


def _in_a_line(path: str, value: Any) -> str:
    try:
        text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, sort_keys=False)
    except yaml.YAMLError as error:
        raise SpecError([Problem(f"cannot be said in YAML: {error}", place=Place(f"{OPTION}{path[:200]}"))]) from None
    return text.strip().removesuffix("...").strip()


def key_path(text: str) -> KeyPath:
    """The steps of a path as `text.layers[0].repeat`. Raises SpecError for an invalid path."""
    if not re.fullmatch(_PATH, text) or len(text) > MAX_LENGTH:
        message = f"expected the path of a field, found {shortened(text)}"
        raise SpecError([Problem(message, hint="like text.parts.moe.num_experts or text.layers[0].repeat")])
    return tuple(int(index) if index else name for index, name in re.findall(_STEP, text))


def _apply(tree: Tree, text: str) -> Tree:
    path_text, equals, value_text = text.partition("=")
    path_text = path_text.strip()
    place = Place(f"{OPTION}{path_text if len(path_text) <= 200 else path_text[:200] + '…'}")
    if not equals or not re.fullmatch(_PATH, path_text) or len(text) > MAX_LENGTH:
        raise SpecError([Problem(f"expected a path and a value, found {shortened(text)}", "", place, _EXAMPLE)])
    path = key_path(path_text)
    if len(path) > MAX_DEPTH:
        raise SpecError([Problem(f"expected a path of at most {MAX_DEPTH} steps", "", place)])
    if path[0] == "extends":
        raise SpecError([Problem("expected a field of the spec", "extends", place, "name the other spec instead")])
    return _laid(tree, (), path, _value(value_text, path, place))


def _value(text: str, path: KeyPath, place: Place) -> Tree:
    if not text.strip():
        hint = "write null to drop a field, '' for an empty text"
        raise SpecError([Problem("expected a value, found nothing", dotted(path), place, hint)])
    tree = compose(text, lambda line, column: place, path)
    is_block = isinstance(tree.value, dict | list) and text.lstrip()[0] not in "{["
    if is_block or text.lstrip().startswith("---"):
        hint = "write a mapping as {key: value}, a list as [a, b], and quote text that holds ': '"
        raise SpecError([Problem(f"expected a value on one line, found {shortened(text)}", dotted(path), place, hint)])
    return tree


def _laid(tree: Tree, done: KeyPath, rest: KeyPath, value: Tree) -> Tree:
    """`tree`, which is at the path `done`, with `value` merged in at `done + rest`."""
    if not rest:
        return merge(tree, value)
    if isinstance(tree.value, dict):
        return _laid_in_mapping(tree, tree.value, done, rest, value)
    if isinstance(tree.value, list):
        return _laid_in_list(tree, tree.value, done, rest, value)
    message = f"expected a mapping or a list at {dotted(done)}, found {shortened(tree.value)}"
    raise SpecError([Problem(message, dotted((*done, *rest)), value.place)])


def _laid_in_mapping(tree: Tree, entries: dict[str, Tree], done: KeyPath, rest: KeyPath, value: Tree) -> Tree:
    step, after = rest[0], rest[1:]
    if isinstance(step, int):
        raise _wrong_step(f"expected a key of {_named(done)}, found [{step}]", done, rest, value, entries)
    if step in entries:
        laid = _laid(entries[step], (*done, step), after, value)
    elif after and isinstance(after[0], int):
        raise _wrong_step(f"expected a list, found no '{step}' in {_named(done)}", done, rest, value, entries)
    else:
        laid = _laid(Tree({}, value.place), (*done, step), after, value) if after else value
    return Tree({**entries, step: laid}, tree.place)


def _laid_in_list(tree: Tree, items: list[Tree], done: KeyPath, rest: KeyPath, value: Tree) -> Tree:
    index = int(rest[0]) if isinstance(rest[0], int) or re.fullmatch(r"[0-9]{1,9}", rest[0]) else -1
    if not 0 <= index < len(items):
        valid = f"0 to {len(items) - 1}" if items else "none, for it is empty"
        message = f"expected an index of {_named(done)}, {valid}; found {shortened(rest[0])}"
        raise _wrong_step(message, done, rest, value, ())
    laid = _laid(items[index], (*done, index), rest[1:], value)
    return Tree([*items[:index], laid, *items[index + 1 :]], tree.place)


def _wrong_step(
    message: str, done: KeyPath, rest: KeyPath, value: Tree, known: Sequence[str] | dict[str, Tree]
) -> SpecError:
    return SpecError([Problem(message, dotted((*done, *rest)), value.place, nearest(str(rest[0]), known))])


def _named(path: KeyPath) -> str:
    return dotted(path) or "the spec"
