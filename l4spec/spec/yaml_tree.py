"""Strict parser from YAML text to a `Tree`: PyYAML finds the structure, and ambiguous scalars are refused.

The tree is built from parser events rather than from composed nodes, so that nesting, aliases and problems are counted
while reading: a text that would explode is stopped where it starts to, before it takes memory or time.
"""

import re
from collections.abc import Callable
from typing import NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from l4spec.errors import MAX_PROBLEMS, Place, Problem, SpecError, nearest
from l4spec.spec.tree import KeyPath, Tree, dotted, shortened
from l4spec.spec.yaml_scalars import BOOLEAN_WORDS, Trap, read_plain

MAX_NODES = 100_000
MAX_ANCHORS = 1_000
MAX_DEPTH = 64
MAX_KEY_LENGTH = 200

_LOADER: "type[yaml.SafeLoader] | type[yaml.CSafeLoader]" = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNREADABLE = "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
"""Characters that are not text, are line breaks to YAML 1.1 but not to editors, or are invisible (U+FEFF)."""
_MAYBE_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e]")
_UNPRINTABLE = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]"
"""Characters that no string of a spec may hold, however they are written."""
_TOO_DEEP = f"expected at most {MAX_DEPTH} levels of nesting"
_EMPTY = "expected a value, found nothing"
_SYNTAX_HINTS = {
    "mapping values are not allowed": "quote text that holds ': ', and check the indentation",
    "did not find expected <document start>": "one file holds one spec",
    "did not find expected key": "check the indentation",
    "did not find expected '-' indicator": "check the indentation",
    "could not find expected ':'": "a key ends with ': '",
}


def unprintable(text: str) -> str:
    """The first character that no string of a spec may hold, however it is written; empty without one."""
    if text.replace("\n", "").isprintable():  # as nearly all are; the pattern takes long to compile
        return ""
    match = re.search(_UNPRINTABLE, text)
    return match[0] if match else ""


class _Stop(Exception):
    """Reading cannot continue; the problems found so far are the answer."""


def compose(text: str, at: Callable[[int, int], Place], path: KeyPath = ()) -> Tree:
    """The one document in `text`, from the file `path`; `at` makes a `Place` from a line and a column, both from 1.

    Raises SpecError with every problem found, up to `MAX_PROBLEMS`.
    """
    plain = _MAYBE_UNREADABLE.search(text) is None  # the whole pattern takes long to compile, and is rarely needed
    if not plain and (match := re.search(_UNREADABLE, text)):
        line, column = text.count("\n", 0, match.start()) + 1, match.start() - text.rfind("\n", 0, match.start())
        actual = f"expected text, found the character U+{ord(match[0]):04X}"
        raise SpecError([Problem(actual, dotted(path), at(line, column), "write plain UTF-8 text")])
    return _Composer(text, at, path).document()


class _Composer:
    """Walks the events of one text, gathering problems instead of stopping at the first."""

    def __init__(self, text: str, at: Callable[[int, int], Place], path: KeyPath) -> None:
        self._text, self._at, self._path = text, at, path
        self._problems: list[Problem] = []
        self._num_nodes = 0
        self._anchors: dict[str, Tree | None] = {}  # None while the anchored value is still being read

    def document(self) -> Tree:
        tree: Tree | None = None
        try:
            self._parser = _LOADER(self._text)
            tree = self._only_document()
        except _Stop:
            pass
        except yaml.MarkedYAMLError as error:
            self._problems.append(self._syntax_problem(error))
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two from PyYAML's own scanner
            self._problems.append(Problem(f"not YAML: {error}", dotted(self._path), self._at(1, 1)))
        if self._problems or tree is None:
            raise SpecError(self._problems)
        return tree

    def _only_document(self) -> Tree:
        self._next()  # the start of the stream
        start = self._next()
        if isinstance(start, StreamEndEvent):
            self._stop(_EMPTY, start, self._path)
        tree = self._node(self._next(), self._path, 1)
        self._next()  # the end of the document
        if isinstance(more := self._next(), DocumentStartEvent):
            self._stop(
                "expected the end of the file, found a second document", more, self._path, "one file holds one spec"
            )
        return tree

    def _next(self) -> Event:
        event = self._parser.get_event()
        assert event is not None, "the parser was asked for more than the end of the stream"
        return event

    def _node(self, event: Event, path: KeyPath, depth: int) -> Tree:
        self._count(1, event, path)
        if isinstance(event, AliasEvent):
            return self._alias(event, path, depth)
        assert isinstance(event, NodeEvent)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                message = f"the anchor &{event.anchor[:80]} is defined twice"
                self._problem(message, event, path, "give each its own name")
            self._anchors[event.anchor] = None
            if len(self._anchors) > MAX_ANCHORS:
                self._stop(f"expected at most {MAX_ANCHORS:,} anchors", event, path)
        tree = self._scalar(event, path) if isinstance(event, ScalarEvent) else self._collection(event, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = tree
        return tree

    def _scalar(self, event: ScalarEvent, path: KeyPath) -> Tree:
        self._refuse_tag(event, path)
        place = self._place(event)
        if not event.implicit[0]:
            if character := unprintable(event.value):
                self._problem(f"expected printable text, found U+{ord(character):04X} in a string", event, path)
            return Tree(event.value, place)
        value = read_plain(event.value)
        if isinstance(value, Trap):
            self._problem(value.message, event, path, value.hint)
            value = None
        return Tree(value, place)

    def _collection(self, event: NodeEvent, path: KeyPath, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            self._stop(_TOO_DEEP, event, path)
        self._refuse_tag(event, path)
        if isinstance(event, MappingStartEvent):
            return Tree(self._entries(path, depth), self._place(event))
        items: list[Tree] = []
        while not isinstance(item := self._next(), SequenceEndEvent):
            items.append(self._node(item, (*path, len(items)), depth + 1))
        return Tree(items, self._place(event))

    def _entries(self, path: KeyPath, depth: int) -> dict[str, Tree]:
        entries: dict[str, Tree] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            key = self._key(event, path, depth)
            value = self._node(self._next(), (*path, "?" if key is None else key), depth + 1)
            if key is None:
                continue
            if key in entries:
                first = entries[key].place.line
                self._problem("this key is written twice", event, (*path, key), f"first on line {first}; keep one")
            else:
                entries[key] = Tree(value.value, self._place(event))
        return entries

    def _key(self, event: Event, path: KeyPath, depth: int) -> str | None:
        """The key that `event` starts, or None with a problem noted. Words like `on` are plain names as keys."""
        if isinstance(event, ScalarEvent) and event.implicit[0] and event.anchor is None:
            if event.value.lower() in BOOLEAN_WORDS:
                return event.value
            if event.value == "<<":
                hint = "write `extends: NAME` at the top of the file, or name the shared part under `parts`"
                self._problem("merge keys are not supported", event, path, hint)
                return None
        num_before = len(self._problems)
        key = self._node(event, (*path, "?"), depth + 1).value
        if isinstance(key, str) and len(key) <= MAX_KEY_LENGTH:
            return key
        if len(self._problems) == num_before:
            self._problem(_wrong_key(key), event, path, "quote it if it is a name")
        return None

    def _alias(self, event: AliasEvent, path: KeyPath, depth: int) -> Tree:
        name = event.anchor or ""
        shown = name[:80]
        tree = self._anchors.get(name)
        if tree is None:
            if name in self._anchors:
                self._problem(f"the alias *{shown} is inside its own anchor", event, path, "write it out")
            else:
                hint = nearest(shown, self._anchors)
                self._problem(f"expected an anchor &{shown} before its alias", event, path, hint)
            return Tree(None, self._place(event))
        size, height = _measure(tree)
        self._count(size - 1, event, path)
        if depth + height - 1 > MAX_DEPTH:
            self._stop(_TOO_DEEP, event, path)
        return Tree(tree.value, self._place(event))

    def _refuse_tag(self, event: Event, path: KeyPath) -> None:
        if tag := getattr(event, "tag", None):
            written = shortened(tag.replace("tag:yaml.org,2002:", "!!"))
            self._problem(f"expected a value without tag, found {written}", event, path, "quotes make a value text")

    def _count(self, num_nodes: int, event: Event, path: KeyPath) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > MAX_NODES:
            self._stop(f"expected at most {MAX_NODES:,} values once aliases are written out", event, path)

    def _place(self, event: Event) -> Place:
        mark = event.start_mark
        assert mark is not None, "parsers mark where every event starts"
        return self._at(mark.line + 1, mark.column + 1)

    def _problem(self, message: str, event: Event, path: KeyPath, hint: str = "") -> None:
        self._problems.append(Problem(message, dotted(path), self._place(event), hint))
        if len(self._problems) >= MAX_PROBLEMS:
            self._stop(f"stopped after {MAX_PROBLEMS} problems", event, ())

    def _stop(self, message: str, event: Event, path: KeyPath, hint: str = "") -> NoReturn:
        self._problems.append(Problem(message, dotted(path), self._place(event), hint))
        raise _Stop

    def _syntax_problem(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        place = self._at(mark.line + 1, mark.column + 1) if mark else self._at(1, 1)
        reason = " ".join(part for part in (error.problem, error.context) if part)
        hint = next((mend for part, mend in _SYNTAX_HINTS.items() if part in reason), "")
        if mark and "cannot start any token" in reason:
            character = "".join(self._text.splitlines()[mark.line : mark.line + 1])[mark.column : mark.column + 1]
            hint = "indent with spaces, not tabs" if character == "\t" else f"quote text that starts with {character}"
        return Problem(f"not YAML: {reason}", dotted(self._path), place, hint)


def _wrong_key(key: object) -> str:
    if isinstance(key, str):
        return f"expected a key of at most {MAX_KEY_LENGTH} characters, found one of {len(key)}"
    actual = "a list or mapping" if isinstance(key, dict | list) else "null" if key is None else shortened(key)
    return f"expected a name as key, found {actual}"


def _measure(tree: Tree) -> tuple[int, int]:
    """The number of values in `tree` and its levels; the caller has bounded both."""
    if isinstance(tree.value, dict | list):
        children = tree.value.values() if isinstance(tree.value, dict) else tree.value
        measures = [_measure(child) for child in children]
        return 1 + sum(size for size, _ in measures), 1 + max((height for _, height in measures), default=0)
    return 1, 1
