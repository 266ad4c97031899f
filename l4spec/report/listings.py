"""`l4spec ls`: shipped documents and catalogue entries, one line each."""

from collections.abc import Callable
from functools import partial

from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import ESTIMATE_MARK, Figures
from l4spec.units import gib

_TFLOPS = 10**12
_ORIGINS = {"program": "a program", "driver": "the driver", "rule": "a rule", "datasheet": "datasheet"}
"""Source of a device's memory size, in one word."""


def listing(what: str) -> Page:
    """The specs, scenarios, recipes, hardware, quantization schemes, engines or layer kinds that are shipped."""
    tables: dict[str, Callable[[], Page]] = {
        "specs": _specs,
        "scenarios": partial(_documents, "scenario"),
        "recipes": partial(_documents, "recipe"),
        "hardware": _hardware,
        "quantization": _quantization,
        "engines": _engines,
        "kinds": _kinds,
    }
    return tables[what]()


def _specs() -> Page:
    from l4spec.report.spec_index import entries

    rows, estimated = [], False
    for entry in entries():
        figures = Figures(entry.estimated)
        estimated = estimated or figures.estimated
        rows.append((entry.name, figures.count(entry.total), figures.count(entry.active), entry.description))
    sections = [Section("", (Table(("spec", "total", "active", "what it is"), tuple(rows), "lrrl"),))]
    if estimated:
        note = f"{ESTIMATE_MARK} depends on fields that have not been published; `l4spec show` lists them"
        sections.append(Section("", (Lines((note,)),)))
    return tuple(sections)


def _documents(kind: str) -> Page:
    """Shipped documents of a kind other than specs, with their descriptions."""
    from l4spec.library import shipped_of
    from l4spec.spec.document import load_document

    rows = [(name, str(load_document(name).data.get("description") or "")) for name in shipped_of(kind)]
    return (Section("", (Table((kind, "what it is"), tuple(rows), "ll"),)),)


def hardware_places() -> dict[str, str]:
    """Paths of every machine, shipped or the user's own, by name."""
    from planners.catalog import own_files, shipped_names

    places = {name: name for name in shipped_names("hardware")}
    return places | {path.stem: str(path) for path in own_files("hardware") if path.stem not in places}


def _hardware() -> Page:
    from planners.catalog import hardware

    rows = []
    for name, place in hardware_places().items():
        entry = hardware(place)
        usable, bf16 = entry.usable, entry.peaks.bf16
        rows.append(
            (
                name,
                gib(usable.num_bytes),
                _ORIGINS[usable.origin],
                _rate(entry.memory.bandwidth.value, "B/s", 2),
                _rate(bf16.value, "FLOP/s", 0) if bf16 else "-",
                str(entry.gpus_per_host.value) if entry.gpus_per_host else "-",
                f"calibrated {entry.eager.measured}" if entry.eager else ", ".join(entry.aliases),
            )
        )
    headers = ("hardware", "memory", "known by", "bandwidth", "dense bf16", "a host", "other names")
    notes = (
        "memory known by a program: what torch, vLLM or Metal could see; by the driver: all of it, of which the driver "
        "keeps a part; by a rule, without a published figure",
    )
    return (Section("", (Table(headers, tuple(rows), "lrlrrrl", 40),)), Section("", (Lines(notes),)))


def _rate(value: float, unit: str, digits: int) -> str:
    """In T, or in G for CPUs."""
    if value < _TFLOPS / 10:
        return f"{value / 10**9:,.0f} G{unit}"
    return f"{value / _TFLOPS:,.{digits if value >= _TFLOPS or digits else 1}f} T{unit}"


def _quantization() -> Page:
    from planners.catalog import quantization, shipped_names

    entries = [quantization(name) for name in shipped_names("quantization")]
    rows = tuple((entry.name, ", ".join(entry.aliases), entry.description) for entry in entries)
    return (Section("", (Table(("scheme", "other names", "what it is"), rows, "lll", 70),)),)


def _engines() -> Page:
    from planners.catalog import engine, shipped_names

    entries = [engine(name) for name in shipped_names("engines")]
    rows = tuple((entry.name, entry.version or "-", entry.description) for entry in entries)
    return (Section("", (Table(("engine", "version", "what it is"), rows, "lll", 70),)),)


def described_kinds() -> list[tuple[str, str, str]]:
    """(name, slot, first sentence of its docstring) of every layer kind, sorted by slot and name."""
    from l4spec.layers import KINDS

    rows = [(name, kind.slot, (kind.spec.__doc__ or "").strip().splitlines()[0]) for name, kind in KINDS.items()]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def _kinds() -> Page:
    return (Section("", (Table(("kind", "slot", "what it is"), tuple(described_kinds()), "lll", 80),)),)
