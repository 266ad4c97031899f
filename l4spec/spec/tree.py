"""Plain data that remembers where every value was written, so that merging files keeps each value's place."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from l4spec.errors import Place

Scalar: TypeAlias = str | int | float | bool | None
Data: TypeAlias = "Scalar | list[Data] | dict[str, Data]"
KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top: `("text", "layers", 0, "repeat")`."""


class Tree(NamedTuple):
    """One value and its place: that of its key in a mapping, of itself in a list."""

    value: "Scalar | list[Tree] | dict[str, Tree]"
    place: Place


def dotted(path: KeyPath) -> str:
    """A path as people and `--set` write it: `text.layers[0].repeat`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def plain(tree: Tree) -> Data:
    """The data of `tree` without places, in fresh lists and dicts."""
    if isinstance(tree.value, dict):
        return {key: plain(child) for key, child in tree.value.items()}
    if isinstance(tree.value, list):
        return [plain(child) for child in tree.value]
    return tree.value


def places(tree: Tree) -> Mapping[KeyPath, Place]:
    """The place of every key and item of `tree` by its path; the path `()` is the top."""
    by_path: dict[KeyPath, Place] = {}
    waiting: list[tuple[KeyPath, Tree]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        by_path[path] = node.place
        if isinstance(node.value, dict):
            waiting.extend(((*path, key), child) for key, child in node.value.items())
        elif isinstance(node.value, list):
            waiting.extend(((*path, index), child) for index, child in enumerate(node.value))
    return by_path


def shortened(value: object, limit: int = 60) -> str:
    """`repr(value)` cut to a length that fits into a message."""
    text = repr(value[: limit + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
