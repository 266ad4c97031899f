"""Reading a Hugging Face config: every field is read by name and type, and unread fields are problems."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from l4spec.errors import MAX_PROBLEMS, Place, Problem, SpecError, nearest
from l4spec.layers.base import LARGEST
from l4spec.spec.tree import shortened

MISSING = object()
LARGEST_NUMBER = 1e12
METADATA = re.compile(
    r"^_|^(unsloth|transformers|peft|adapters?|auto_map$|trainer|tokenizer|vocab_file|wandb|tags?$|licen[cs]e$)"
    r"|_token_(id|ids|index|idx)$|^(bos|eos|pad|unk|cls|sep|mask|boi|eoi|image|video|audio)_token$|_version$"
    r"|loss_(coef|coeff|alpha|weight)$|^(attn|mlp|resid|embd|embed|hidden|classifier|ffn)_(pdrop|dropout)$"
)
"""Names of metadata fields (author, date, tokens, training), which change no number of a forward pass.

Private fields (`_commit_hash`) are among them, unless they repeat a public one."""


@dataclass(slots=True)
class Fields:
    """One mapping of a config: its values, transformers' defaults for missing fields, and the names read so far.

    A reader returns the value, or after noting a problem one of the right type, so that all problems are found at once.
    """

    data: Mapping[str, Any]
    defaults: Mapping[str, Any]
    file: str
    path: str = ""
    problems: list[Problem] = field(default_factory=list)
    consequences: list[Problem] = field(default_factory=list)
    """Problems of fields that depend on others; reported only if the others have none."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user on fields that the import left out or assumed."""
    read: set[str] = field(default_factory=set)
    carried: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)
    """transformers' defaults of sizes and numbers that the config leaves out, by dotted name."""

    def raw(self, name: str) -> Any:
        """The value of the config, or transformers' default; None, with a problem, if neither exists."""
        self.read.add(name)
        value = self.data.get(name, self.defaults.get(name, MISSING))
        if value is MISSING:
            family = self.data.get("model_type")
            self.problem(name, "missing field", f"{family} has no default for it" if isinstance(family, str) else "")
            return None
        if name not in self.data and isinstance(value, int | float) and not isinstance(value, bool) and value:
            self.assumed[self._dotted(name)] = value
        return value

    def has(self, name: str) -> bool:
        """True if the config has a value other than null."""
        return self.data.get(name) is not None

    def size(self, name: str) -> int:
        """An integer of at least 1."""
        return self._integer(name, self.raw(name), 1)

    def count(self, name: str) -> int:
        """An integer of at least 0."""
        return self._integer(name, self.raw(name), 0)

    def size_or_none(self, name: str) -> int | None:
        """An integer of at least 1, or null."""
        value = self.raw(name)
        return None if value is None else self._integer(name, value, 1)

    def number(self, name: str) -> float:
        """A number above 0."""
        return self._number(name, self.raw(name))

    def number_or_none(self, name: str) -> float | None:
        """A number above 0, or null."""
        value = self.raw(name)
        return None if value is None else self._number(name, value)

    def flag(self, name: str) -> bool:
        """True or false; null counts as false, and a number as Python counts it (transformers 4.51 writes a 4)."""
        value = self.raw(name)
        if value is None or isinstance(value, bool | int):
            return bool(value)
        self.problem(name, f"expected true or false, found {shortened(value)}")
        return False

    def integers(self, name: str) -> list[int] | None:
        """A list of integers of at least 0, or null."""
        return self._items(name, lambda item: isinstance(item, int) and not isinstance(item, bool) and item >= 0)

    def words(self, name: str, known: Sequence[str]) -> list[str] | None:
        """A list of words out of `known`, or null."""
        return self._items(name, lambda item: isinstance(item, str) and item in known, f", each one of {list(known)}")

    def expect(self, name: str, *allowed: Any) -> None:
        """The field must have one of the `allowed` values; any other would change the mathematics."""
        value = self.raw(name)
        if not _among(value, allowed):
            self.problem(name, _other_mathematics(value, allowed))

    def expect_derived(self, name: str, value: Any) -> None:
        """Check that the field, if the config has it, agrees with other fields, and carry it.

        A deviation is reported only if every other field was read without a problem.
        """
        self.carry(name)
        if self.has(name) and not _among(self.data[name], (value,)):
            self.consequence(name, _other_mathematics(self.data[name], (value,)))

    def fix(self, fixed: Mapping[str, Sequence[Any]]) -> None:
        """Check fields with a constant value in the family: carried with one of these values, or null; else refused.

        A problem is a reason for `--ignore`: the family's mathematics has no such switch.
        """
        for name, allowed in fixed.items():
            self.carry(name)
            if self.has(name) and not _among(self.data[name], allowed):
                self.problem(name, _other_mathematics(self.data[name], allowed))

    def mapping(self, name: str, defaults: Mapping[str, Any] | None = None) -> "Fields | None":
        """The fields of a mapping, which shares this one's problems; None when it is null or missing."""
        self.read.add(name)
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problem(name, f"expected a mapping, found {shortened(value)}")
            value = {}
        path = self._dotted(name)
        inner = Fields(value, defaults or {}, self.file, path, self.problems, self.consequences, self.notes)
        inner.assumed = self.assumed
        return inner

    def carry(self, *names: str) -> None:
        """These fields have no effect here; they are kept for the way back."""
        self.read.update(names)
        self.carried.update({name: self.data[name] for name in names if name in self.data})

    def finish(self, ignorable: Iterable[str], dropped: Mapping[str, Any]) -> dict[str, Any]:
        """Carried fields: `ignorable` ones, `dropped` ones unless they have their usual value; refuses the rest."""
        for name, usual in dropped.items():
            self.read.add(name)
            if self.has(name) and self.data[name] != usual:
                self.carry(name)
        self.carry(*ignorable)
        unknown = [name for name in self.data if name not in self.read and not self._says_nothing(name)]
        for name in unknown[: MAX_PROBLEMS + 2]:
            message = "unknown field, which may change the mathematics"
            hint = nearest(name, self.read) if len(name) < 80 else ""
            self.problem(name, message, hint if hint.startswith("did you mean") else f"--ignore {name[:80]} drops it")
        return self.carried

    def _says_nothing(self, name: str) -> bool:
        """True, and the field carried, if an unread field is metadata, null or the private copy of a public one."""
        public = name.lstrip("_")
        if public != name and public in self.read:
            same = bool(self.data[name] == self.data.get(public, self.defaults.get(public)))
        else:
            same = self.data[name] is None or METADATA.search(name) is not None
        if same:
            self.carry(name)
        return same

    def problem(self, name: str, message: str, hint: str = "") -> None:
        """Add a problem of a field."""
        self.problems.append(Problem(message, path=self._dotted(name), place=Place(self.file), hint=hint))

    def consequence(self, name: str, message: str) -> None:
        """Note a problem that follows from other fields: reported only if those have no problems themselves."""
        self.consequences.append(Problem(message, path=self._dotted(name), place=Place(self.file)))

    def note(self, text: str) -> None:
        """Add a line to the notes of the import."""
        self.notes.append(text)

    def raise_problems(self) -> None:
        """Raise SpecError with all problems, if there are any."""
        if self.problems or self.consequences:
            raise SpecError(dict.fromkeys(self.problems or self.consequences))

    def _dotted(self, name: str) -> str:
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        return f"{self.path}.{shown}" if self.path else shown

    def _integer(self, name: str, value: Any, least: int) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST:
            return value
        if value is not None or name in self.data:
            self.problem(name, f"expected an integer from {least} to {LARGEST}, found {_shown(value)}")
        return max(least, 1)

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_NUMBER:
            return value
        if value is not None or name in self.data:
            self.problem(name, f"expected a number above 0 and at most {LARGEST_NUMBER:g}, found {_shown(value)}")
        return 1.0

    def _items(self, name: str, fits: Any, what: str = " of integers of at least 0") -> list[Any] | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, list) and all(fits(item) for item in value):
            return value
        self.problem(name, f"expected a list{what}, found {shortened(value)}")
        return None


def _among(value: Any, allowed: Iterable[Any]) -> bool:
    return any(type(value) is type(known) and value == known for known in allowed)


def _other_mathematics(value: Any, allowed: Iterable[Any]) -> str:
    shown = " or ".join(map(repr, allowed))
    return f"expected {shown}, found {shortened(value)}, which would change the mathematics"


def _shown(value: Any) -> str:
    huge = isinstance(value, int) and value.bit_length() > 256
    return f"an integer of {value.bit_length()} bits" if huge else shortened(value)
