"""Report of `l4spec calibrate`: the measured machine as a hardware profile in YAML, and its summary."""

from statistics import median
from typing import TYPE_CHECKING, Any

from l4spec.layers.common.eager import Piece
from l4spec.layers.declaration import Work
from l4spec.report.page import Facts, Lines, Page, Section, Table
from l4spec.report.quantities import seconds as duration
from l4spec.units import gib
from planners.catalog import Hardware
from planners.catalog.cpu_profile import EagerTimes
from planners.module.pieces import code_of
from planners.module.step_time import ROTATION, EagerModel

if TYPE_CHECKING:
    from l4spec.runtime.calibrate.run import Calibration
    from l4spec.runtime.calibrate.tables import RawTable

NAME = "this"
_DIGITS = 4


def profile(calibration: "Calibration", name: str = NAME) -> Hardware:
    """The machine as a catalogue entry. Peaks are the best rates that were measured, not a datasheet's."""
    seen = calibration.conditions
    source = f"l4spec calibrate on {seen.processor}, {seen.threads} threads, torch {seen.torch}, {seen.day}"
    data: dict[str, Any] = {
        "name": name,
        "description": f"This machine: {seen.processor}, {seen.threads} of {seen.cores} cores, our module on its CPU",
        "memory": {
            "nominal": {"value": seen.memory_bytes, "source": source},
            "physical": {"value": seen.memory_bytes, "source": source},
            "bandwidth": {"value": _streamed(calibration), "source": source, "note": "a vector by weights from memory"},
        },
        "peaks": {
            dtype: {"value": _best_rate(tables["product"]), "source": source, "note": "the fastest product"}
            for dtype, tables in calibration.tables.items()
        },
        "gpus_per_host": {"value": 1, "source": source},
        "eager": _eager(calibration),
    }
    return Hardware.model_validate(data)


def profile_text(hardware: Hardware) -> str:
    """The YAML file of a profile."""
    import yaml

    written = hardware.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for owner, key, unit in _with_units(written):
        owner[key]["value"] = f"{owner[key]['value']:.0f} {unit}"
    head = "# What `l4spec calibrate` measured on this machine; times are seconds. Measure again rather than edit.\n"
    return head + yaml.dump(written, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def calibration_page(hardware: Hardware, gpus: str) -> Page:
    """Summary of a calibration, and the command that uses it."""
    times = hardware.eager
    assert times is not None
    facts = (
        ("machine", f"{times.processor}, {times.threads} threads, torch {times.torch}"),
        ("memory", f"{gib(hardware.usable.num_bytes)}, read at {hardware.memory.bandwidth.value / 1e9:.1f} GB/s"),
        ("measured", f"{times.measured}, everything at least {times.turns} times"),
    )
    rows = []
    for dtype, pieces in times.pieces.items():
        rate = getattr(hardware.peaks, dtype).value
        layers = [pieces.layer[kind] for kind in ("gqa", "swiglu", "moe") if kind in pieces.layer]
        rows.append((dtype, f"{rate / 1e9:,.0f} GFLOP/s", *(duration(max(0.0, layer.seconds)) for layer in layers)))
    table = Table(("", "fastest product", "attention", "feed-forward", "mixture"), tuple(rows))
    lines = Lines((f"l4spec plan SPEC --gpus {gpus} --quantization fp32 --kv-dtype fp32",))
    return (
        Section("", (Facts(facts),)),
        Section("Rates, and what Python costs a layer besides", (table,)),
        Section("Plan with it", (lines,)),
    )


def _with_units(written: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    memory, peaks = written["memory"], written["peaks"]
    units = {"nominal": "B", "physical": "B", "bandwidth": "B/s"}
    return [(memory, key, units[key]) for key in memory] + [(peaks, key, "FLOP/s") for key in peaks]


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Numbers of a table in rows."""

    Dumper.add_representer(
        list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
    )
    return Dumper


_Dumper = _dumper()


def _best_rate(table: "RawTable") -> float:
    """FLOP/s of the fastest product."""
    rows, inputs, outputs = table["axes"]
    sizes = [2 * m * k * n for m in rows for k in inputs for n in outputs]
    return max(flops / seconds for flops, seconds in zip(sizes, table["seconds"], strict=True))


def _streamed(calibration: "Calibration") -> float:
    """Bytes per second that a vector's product reads where no cache holds the weights; the best of all formats."""
    rates = []
    for tables in calibration.tables.values():
        sizes, seconds = tables["residency"]["axes"][0], tables["residency"]["seconds"]
        rates.append(sizes[-1] / seconds[-1])
    return max(rates)


def _eager(calibration: "Calibration") -> dict[str, Any]:
    seen = calibration.conditions
    resident = {dtype: _resident(tables["residency"]) for dtype, tables in calibration.tables.items()}
    pieces = {dtype: _tables(tables) for dtype, tables in calibration.tables.items()}
    eager = {
        "processor": seen.processor,
        "threads": seen.threads,
        "torch": seen.torch,
        "measured": seen.day,
        "turns": calibration.turns,
        "clock": calibration.clock,
        "resident": resident,
        "pieces": pieces,
    }
    for dtype, own in pieces.items():
        bare = EagerTimes.model_validate(eager | {"pieces": {dtype: own}})
        own["expert"], own["layer"] = _expert(calibration, dtype, bare), _layers(calibration, dtype, bare)
        own["layer"][ROTATION], own["forward"] = _rotation(calibration, dtype), _forward(calibration, dtype)
    return eager


def _tables(tables: "dict[str, RawTable]") -> dict[str, Any]:
    """Tables of a number format with constants yet to be found."""
    named = {name: dict(table) for name, table in tables.items() if name not in ("residency", "experts")}
    nothing = {"seconds": 0.0, "cold": 0.0}
    return named | {"expert": nothing, "layer": {}, "forward": nothing}


def _resident(table: "RawTable") -> dict[str, Any]:
    """Shares between the fastest and the slowest reading: more bytes never are better."""
    sizes, seconds = table["axes"][0], table["seconds"]
    pace = [second / size for size, second in zip(sizes, seconds, strict=True)]
    fast, slow, shares, most = min(pace), max(pace), [], 0.0
    for each in pace:
        most = max(most, (each - fast) / (slow - fast) if slow > fast else 0.0)
        shares.append(_rounded(most))
    return {"bytes": sizes, "share": shares}


def _layers(calibration: "Calibration", dtype: str, bare: EagerTimes) -> dict[str, Any]:
    """Seconds of each kind of layer beyond its pieces, from the narrow models, hot and cold."""
    from l4spec.runtime.calibrate.reference import seconds_of

    left: dict[str, list[tuple[float, float]]] = {}
    for reference in calibration.references[dtype]:
        model = EagerModel(reference.graph, bare, dtype)
        work = Work(1, 1, reference.cached, phase="decode", num_logits=1)
        for group in reference.graph.groups:
            hot, cold = seconds_of(reference.nodes[group.first.id])
            rest = hot - model.layer_seconds(group, work, 0.0, 0.0), cold - model.layer_seconds(group, work, 1.0, 1.0)
            left.setdefault(code_of(group.first), []).append(rest)
    return {kind: _constant(rests) for kind, rests in left.items()}


def _rotation(calibration: "Calibration", dtype: str) -> dict[str, float]:
    """Additional seconds of an attention layer that computes its rotation table."""
    from l4spec.runtime.calibrate.reference import seconds_of

    more = []
    for reference in calibration.references[dtype]:
        if reference.turning is not None and reference.attention is not None:
            pairs = zip(seconds_of(reference.turning), seconds_of(reference.nodes[reference.attention]), strict=True)
            hot, cold = (max(0.0, turning - plain) for turning, plain in pairs)
            more.append((hot, cold))
    return _constant(more)


def _forward(calibration: "Calibration", dtype: str) -> dict[str, float]:
    """Seconds of a pass whose layers do nothing."""
    from l4spec.runtime.calibrate.reference import seconds_of

    return _constant([seconds_of(reference.hollow) for reference in calibration.references[dtype]])


def _constant(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of the measurements, hot and cold."""
    hot, cold = (_rounded(median(values)) for values in zip(*pairs, strict=True))
    return {"seconds": hot, "cold": cold}


def _expert(calibration: "Calibration", dtype: str, bare: EagerTimes) -> dict[str, float]:
    """Seconds of one more hit expert besides three products and a gate; its code has run for the expert before."""
    from l4spec.runtime.calibrate.routing import NARROW

    table = calibration.tables[dtype]["experts"]
    (few, many), (short, long) = table["axes"][0], table["seconds"]
    model = EagerModel(calibration.references[dtype][0].graph, bare, dtype)
    pieces = (Piece("product", (1, NARROW, NARROW), 3), Piece("gate_silu", (NARROW,)))
    each = (long - short) / (many - few) - sum(model.piece_seconds(piece, 0.0) for piece in pieces)
    return _constant([(each, each)])


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
