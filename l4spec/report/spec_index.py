"""Parameters of the shipped specs, computed once and shipped beside them, so that `l4spec ls` compiles none.

`python -m l4spec.report.spec_index` writes `specs/index.json`. It carries a digest of every shipped spec: where any
file differs, as in a checkout being edited, the index is ignored and the specs are compiled. A test keeps it in step
with the code.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from l4spec.library import shipped_specs, specs_folder

FILE = "index.json"


@dataclass(frozen=True, slots=True)
class SpecEntry:
    """One shipped spec: total and active parameters, whether unpublished fields change them, and its description."""

    name: str
    total: int
    active: int
    estimated: bool
    description: str


def entries() -> tuple[SpecEntry, ...]:
    """Every shipped spec in the order of names, from the index where it matches the files, else compiled."""
    stored = _stored(specs_folder() / FILE)
    return compiled_entries() if stored is None else stored


def compiled_entries() -> tuple[SpecEntry, ...]:
    """Every shipped spec in the order of names, each compiled and counted."""
    return tuple(_entry(name) for name in shipped_specs())


def index_text() -> str:
    """The text of the index for the specs as they are now."""
    rows = [asdict(entry) for entry in compiled_entries()]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f'{{"digest": "{digest()}", "specs": [\n{lines}\n]}}\n'


def digest() -> str:
    """SHA-256 of names and contents of all shipped specs: a parent's change is a change of its variants."""
    total = hashlib.sha256()
    for name, path in shipped_specs().items():
        total.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _stored(path: Path) -> tuple[SpecEntry, ...] | None:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return tuple(SpecEntry(**row) for row in index["specs"]) if index["digest"] == digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(name: str) -> SpecEntry:
    import l4spec
    from l4spec.spec.estimates import estimates_of
    from planners.counts.params import count_params

    spec = l4spec.load(name)
    params = count_params(l4spec.compile(spec))
    return SpecEntry(name, params.total, params.active, bool(estimates_of(spec).params), spec.description or "")


if __name__ == "__main__":
    (specs_folder() / FILE).write_text(index_text(), encoding="utf-8")
