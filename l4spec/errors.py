"""What a user did wrong, said once, with the place and the mend.

Anything a user can cause is a `UserError`; the command line prints its problems and exits with 2. A programmer's
mistake stays an ordinary exception, so that it is never mistaken for bad input.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: a file (or an option such as `--set`), where known with line and column from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    `message` says what was expected and what was found, `path` which field (`text.parts.moe.num_experts`),
    `place` where it stands, `hint` how to mend it.
    """

    message: str
    path: str = ""
    place: Place | None = None
    hint: str = ""

    def __str__(self) -> str:
        head = ": ".join(str(part) for part in (self.place, self.path, self.message) if part)
        return f"{head} ({self.hint})" if self.hint else head


class UserError(ValueError):
    """Input that cannot be used: every problem found, all at once."""

    def __init__(self, problems: Iterable[Problem] | str, *, hint: str = "") -> None:
        found = (Problem(problems, hint=hint),) if isinstance(problems, str) else tuple(problems)
        assert found, "a UserError needs at least one problem"
        self.problems = found
        super().__init__("\n".join(str(problem) for problem in found))


class SpecError(UserError):
    """A spec that cannot be read, parsed or resolved."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known spelling closest to `name`, or all known ones when few and none is close."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of: {', '.join(names)}" if 0 < len(names) <= 24 else ""
