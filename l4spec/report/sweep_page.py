"""The rows of `l4spec sweep` as a table, with assumptions and unplanned variants; and as CSV."""

from collections.abc import Callable, Iterator

from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import amount, count, exact_bytes, flops, seconds, usd, whole
from l4spec.units import gib
from planners.sweep.sweep_types import SweepRow, SweepTable

Cell = Callable[[SweepRow], str]


def sweep_page(sweep: SweepTable) -> Page:
    """A row per variant, the plan's settings, prices, and the reasons of variants without numbers."""
    settings = [*_settings(sweep)]
    columns = [*settings, *_costs(sweep)]
    rows = tuple(tuple("-" if _unknown(row, name) else cell(row) for name, cell in columns) for row in sweep.rows)
    align = "".join("l" if name == "layout" else "r" for name, _ in columns)
    table = Table(tuple(name for name, _ in columns), rows, align, keys=len(settings))
    return Section("", (table,)), Section("", (Lines(tuple(_notes(sweep))),))


def _unknown(row: SweepRow, column: str) -> bool:
    return row.params is None and column in dict(_MODEL + _SERVING + _TRAINING)


def _settings(sweep: SweepTable) -> Iterator[tuple[str, Cell]]:
    for path in sweep.paths:
        yield _short(path, sweep.paths), lambda row, path=path: str(row.values[path])  # type: ignore[misc]
    if any(row.widen != 1 for row in sweep.rows):
        yield "widen", lambda row: f"x{row.widen:.4g}"


def _short(path: str, paths: tuple[str, ...]) -> str:
    """The end of a path that no other one has."""
    words = path.split(".")
    for length in range(1, len(words)):
        end = words[-length:]
        if sum(other.split(".")[-length:] == end for other in paths) == 1:
            return ".".join(end)
    return path


_MODEL: tuple[tuple[str, Cell], ...] = (
    ("parameters", lambda row: count(row.params or 0)),
    ("active", lambda row: count(row.active_params or 0)),
    ("FLOPs/token", lambda row: flops(row.flops_per_token or 0)),
    ("KV/token", lambda row: exact_bytes(row.kv_bytes_per_token or 0)),
)
_SERVING: tuple[tuple[str, Cell], ...] = (
    ("fits", lambda row: "yes" if row.fits else "no"),
    ("GiB/GPU", lambda row: gib(row.bytes_per_gpu or 0).removesuffix(" GiB")),
    ("layout", lambda row: row.layout or "-"),
    ("TPOT", lambda row: _time(row.time_per_output_token_seconds) if row.fits else "-"),
    ("$/M out", lambda row: usd(row.usd_per_million_output_tokens) if row.fits else "-"),
)
_TRAINING: tuple[tuple[str, Cell], ...] = (
    ("GPU-hours", lambda row: "-" if row.train_gpu_hours is None else amount(row.train_gpu_hours)),
    ("training $", lambda row: usd(row.train_usd)),
    ("MFU", lambda row: "-" if row.train_mfu is None else f"{100 * row.train_mfu:.1f} %"),
)


def _costs(sweep: SweepTable) -> tuple[tuple[str, Cell], ...]:
    serving = _SERVING if "gpus" in sweep.serving else ()
    return (*_MODEL, *serving, *(_TRAINING if sweep.training else ()))


def _time(value: float | None) -> str:
    return "unknown" if value is None else seconds(value)


def _notes(sweep: SweepTable) -> Iterator[str]:
    served = sweep.serving
    where = f" on {served['gpus']}" if "gpus" in served else "; give --gpus for what fits, times and cost"
    yield f"{sweep.model}: {whole(len(sweep.rows))} variants, served{_load(sweep)}{where}."
    if any(row.usd_per_million_output_tokens for row in sweep.rows) and not {"batch", "concurrency", "rate"} & {
        *served
    }:
        yield "$/M out: of one sequence at a time; --batch, or --output-tokens with --concurrency, prices a load."
    batches = sorted({row.train_batch for row in sweep.rows if row.train_batch})
    if sweep.training:
        tokens, gpus = count(sweep.training["train_tokens"]), sweep.training.get("gpus", "one device")
        batch = f", {whole(batches[0])} sequences per step" if len(batches) == 1 else ""
        yield f"Training: {tokens} tokens on {gpus}{batch}."
        if any(row.train_fits is False for row in sweep.rows):
            yield "A training run that does not fit has no hours: --train-gpus gives it GPUs of its own."
    if any(row.extrapolated for row in sweep.rows):
        yield "TPOT of layouts, models or GPUs unlike the measured ones is an extrapolation."
    yield from (f"price of {price}" for price in sweep.prices)
    for row in sweep.rows:
        if row.problem:
            values = ", ".join(f"{path}={value}" for path, value in row.values.items())
            widened = f", widen {row.widen:g}" if row.widen != 1 else ""
            yield f"{values}{widened}: {row.problem}"


def _load(sweep: SweepTable) -> str:
    loads = sorted({(row.context, row.batch) for row in sweep.rows if row.context and row.batch})
    return " with " + " or ".join(f"{whole(c or 0)} tokens, batch {whole(b or 0)}" for c, b in loads)
