"""A reader of pickles that makes nothing but plain values and inert records: no class is imported, and nothing called.

Python's own unpickler executes a pickle's operations, even if only a few classes are allowed: it sets attributes of
classes, joins texts until memory is full, and reserves memory by numbers in the pickle. Here every operation is one of
a short list, and its result is no larger than the pickle.
"""

import pickletools
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 1 << 27
MOST_OPERATIONS = 4_000_000
"""Of a description of some 50,000 pieces of tensors, 3 TB in pieces of 64 MiB."""
LARGEST_INTEGER = 1 << 63
_LONGEST_TEXT = 10_000


class RefusedPickle(ValueError):
    """Raised for a pickle with an operation that this reader refuses, which the message names."""


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function, which is never looked up."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An instance that was not created: its class, arguments and state."""

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None


_MARK = object()


class _Machine:
    """The stack and the memory of one pickle."""

    def __init__(self, allowed: Mapping[str, Collection[str]]) -> None:
        self._allowed = allowed
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number >= MOST_OPERATIONS:
                raise RefusedPickle(f"it has more than {MOST_OPERATIONS:,} operations")
            if opcode.name == "STOP":
                break
            work = _OPERATIONS.get(opcode.name)
            if work is None:
                raise RefusedPickle(f"it uses {opcode.name}, which no description needs")
            work(self, argument)
        value = self.pop()
        if self._stack:
            raise RefusedPickle("it ends in the middle of a value")
        return value

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise RefusedPickle("a value is missing")
        return value

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise RefusedPickle(f"a {kind.__name__} is missing")
        return value

    def mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def since_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        raise RefusedPickle("a mark is missing")

    def text(self, value: str) -> None:
        if len(value) > _LONGEST_TEXT:
            raise RefusedPickle(f"a text has {len(value):,} characters")
        self.push(value)

    def integer(self, value: int) -> None:
        if abs(value) >= LARGEST_INTEGER:
            raise RefusedPickle("an integer is too large")
        self.push(value)

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or name not in self._allowed.get(module, ()):
            raise RefusedPickle(f"it names {str(module)[:80]}.{str(name)[:80]}, which is refused")
        self.push(Name(module, name))

    def stack_global(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        self.named(module, name)

    def record(self, _: object) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise RefusedPickle("it calls what is no class")
        self.push(Record(name, arguments))

    def build(self, _: object) -> None:
        state = self.pop()
        record = self.top(Record)
        if record.state is not None:
            raise RefusedPickle("it gives a value its state twice")
        record.state = state

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        entries = self.top(dict)
        if len(items) % 2:
            raise RefusedPickle("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | Record) or (isinstance(key, str) and key in entries):
                raise RefusedPickle("a key is no name, or appears twice")
            entries[key] = value

    def remember(self, number: int | None) -> None:
        self._memory[len(self._memory) if number is None else number] = self._stack[-1]

    def recall(self, number: int) -> None:
        if number not in self._memory:
            raise RefusedPickle("it uses a value before it is there")
        self.push(self._memory[number])


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.text),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.integer),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.record),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BINFLOAT": _Machine.push,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": lambda machine, words: machine.named(*words.split(" ", 1)),
    "STACK_GLOBAL": _Machine.stack_global,
    "BUILD": _Machine.build,
}
"""Operations of pickles of dataclasses, by the names of the standard library's `pickletools`."""


def read_pickle(data: bytes, allowed: Mapping[str, Collection[str]]) -> Any:
    """Read a pickle, with instances as `Record`, of classes that are `allowed` by module.

    Raises RefusedPickle for everything else: other operations, more than `MOST_OPERATIONS`, other names, truncated or
    damaged data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of escapes in a text that mean nothing: no pickler writes them
            return _Machine(allowed).run(data)
    except RefusedPickle:
        raise
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError, Warning):
        raise RefusedPickle("it is truncated or of another kind") from None
