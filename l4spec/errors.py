"""User-facing errors: message, location, hint.

Anything a user can cause is a `UserError`; the command line prints its problems and exits with 2. A programmer's
mistake stays an ordinary exception, so that it is never mistaken for bad input.
"""

import re
from bisect import bisect
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

MAX_PROBLEMS = 50
"""Most problems that are reported at once."""


class Place(NamedTuple):
    """Location in an input: a file (or an option such as `--set`), with line and column from 1 where they are known."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class Problem(NamedTuple):
    """One error in an input.

    `message` has the expected and the given value, `path` the field (`text.parts.moe.num_experts`), `place` its
    location, `hint` a fix.
    """

    message: str
    path: str = ""
    place: Place | None = None
    hint: str = ""

    def __str__(self) -> str:
        head = ": ".join(str(part) for part in (self.place, self.path, self.message) if part)
        return f"{head} ({self.hint})" if self.hint else head


class UserError(ValueError):
    """Raised for unusable input, with all of its problems."""

    def __init__(self, problems: Iterable[Problem] | str, *, hint: str = "") -> None:
        self.problems = (Problem(problems, hint=hint),) if isinstance(problems, str) else tuple(problems)
        assert self.problems, "a UserError needs at least one problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


def os_reason(error: Exception) -> str:
    """The operating system's message for a failed file access, as one line without a traceback."""
    return (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0][:200] or type(error).__name__


class SpecError(UserError):
    """Raised for a document that cannot be read, parsed or resolved, with its first `MAX_PROBLEMS` problems."""

    def __init__(self, problems: Iterable[Problem] | str, *, hint: str = "") -> None:
        if not isinstance(problems, str):
            first = tuple(islice(problems, MAX_PROBLEMS + 1))
            stopped = Problem(f"stopped after {MAX_PROBLEMS} problems")
            problems = first if len(first) <= MAX_PROBLEMS else (*first[:MAX_PROBLEMS], stopped)
        super().__init__(problems, hint=hint)


_LONGEST_NAME = 200
_MOST_COMPARED = 400


def _within(name: str, names: Sequence[str]) -> list[str]:
    """The known name whose words are all among those of the longer `name`: `scout` for `llama-4-scout`."""
    words = set(_words(name))
    inside = [known for known in names if any(map(str.isalpha, known)) and words.issuperset(_words(known))]
    return sorted(inside, key=len, reverse=True)[:1]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_/ .]+", name.lower()) if word]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known spelling closest to `name`, or all known ones when few and none is close.

    Of very many known names only those beside `name` in alphabetical order are compared, and a text of more than 200
    characters is no misspelled name: a hint takes milliseconds, whatever a user wrote.
    """
    if len(name) > _LONGEST_NAME:
        return ""
    from difflib import get_close_matches

    names = sorted(set(known))
    if len(names) > _MOST_COMPARED:
        start = max(0, bisect(names, name) - _MOST_COMPARED // 2)
        names = names[start : start + _MOST_COMPARED]
    close = (
        get_close_matches(name, names, n=1, cutoff=0.8)
        or _within(name, names)
        or get_close_matches(name, names, n=1, cutoff=0.6)
    )
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of: {', '.join(names)}" if 0 < len(names) <= 24 else ""
