"""`extends`: a spec as its parent plus differences.

Mappings merge key by key; lists, scalars and null replace. A mapping of another `kind` replaces its parent's mapping,
for the fields of one kind mean nothing to another. Statements about one model – its name, description, sources, claims
and published facts – are not inherited; the list of estimated fields is.
"""

import os
from collections.abc import Callable
from pathlib import Path

from l4spec.errors import Problem, SpecError
from l4spec.library import find_beside, missing
from l4spec.spec.files import label
from l4spec.spec.tree import Tree, shortened

MAX_LEVELS = 16
NOT_INHERITED = frozenset({"name", "description", "sources", "about", "claims", "extends"})
_EXTENDS, _ESTIMATED = "extends", "estimated"


def merge(parent: Tree, child: Tree) -> Tree:
    """`child` laid over `parent`; every value keeps the place where it was written."""
    if not isinstance(parent.value, dict) or not isinstance(child.value, dict) or _kinds_differ(parent, child):
        return child
    merged = dict(parent.value)
    for key, value in child.value.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return Tree(merged, child.place)


def inherit(parent: Tree, child: Tree) -> Tree:
    """A whole spec `child` laid over the spec `parent` that it extends."""
    if not isinstance(parent.value, dict) or not isinstance(child.value, dict):
        return child
    inherited = {key: value for key, value in parent.value.items() if key not in NOT_INHERITED}
    own = dict(child.value)
    if _ESTIMATED in inherited and _ESTIMATED in own:
        own[_ESTIMATED] = _concatenated(inherited[_ESTIMATED], own[_ESTIMATED])
    return merge(Tree(inherited, parent.place), Tree(own, child.place))


def load_chain(path: Path, read: Callable[[Path], Tree]) -> tuple[Tree, tuple[Path, ...]]:
    """The spec at `path` with all it extends merged in, and the files extended, nearest parent first.

    Raises SpecError, at the `extends` key, for a missing parent, a cycle, or more than `MAX_LEVELS` parents.
    """
    files, trees = [path], [read(path)]
    while (parent := _parent(files[-1], trees[-1])) is not None:
        _refuse_cycle(files, parent, trees[-1])
        files.append(parent)
        trees.append(read(parent))
    merged = trees.pop()
    while trees:
        merged = inherit(merged, trees.pop())
    return merged, tuple(files[1:])


def _parent(path: Path, tree: Tree) -> Path | None:
    extends = tree.value.get(_EXTENDS) if isinstance(tree.value, dict) else None
    if extends is None or extends.value is None:
        return None
    if not isinstance(extends.value, str):
        kind_of_value = "a list or mapping" if isinstance(extends.value, dict | list) else shortened(extends.value)
        raise _problem(tree, f"expected the name or the path of one spec, found {kind_of_value}")
    parent = find_beside(extends.value, path.parent)
    if parent is None:
        raise _problem(tree, *missing(extends.value, path.parent))
    return parent


def _refuse_cycle(files: list[Path], parent: Path, tree: Tree) -> None:
    seen = [os.path.realpath(file) for file in files]
    again = os.path.realpath(parent)
    if again in seen:
        cycle = [label(file) for file in (*files[seen.index(again) :], parent)]
        raise _problem(tree, f"expected an end to what extends what, found a circle: {' → '.join(cycle)}")
    if len(files) > MAX_LEVELS:
        raise _problem(tree, f"expected at most {MAX_LEVELS} levels of extends")


def _problem(tree: Tree, message: str, hint: str = "") -> SpecError:
    assert isinstance(tree.value, dict)
    return SpecError([Problem(message, _EXTENDS, tree.value[_EXTENDS].place, hint)])


def _kinds_differ(parent: Tree, child: Tree) -> bool:
    kinds = [
        tree.value["kind"].value for tree in (parent, child) if isinstance(tree.value, dict) and "kind" in tree.value
    ]
    return len(kinds) == 2 and kinds[0] != kinds[1]


def _concatenated(parent: Tree, child: Tree) -> Tree:
    if not isinstance(parent.value, list) or not isinstance(child.value, list):
        return child
    known = [item.value for item in parent.value]
    return Tree([*parent.value, *(item for item in child.value if item.value not in known)], child.place)
