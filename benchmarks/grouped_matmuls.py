"""Fits the law of grouped matmuls on measured kernels and draws the cells that `l4spec accuracy` replays.

    python benchmarks/grouped_matmuls.py FILE.csv.gz

FILE is a table of the kernels that PyPI's aiconfigurator-core 0.12.0 (Apache-2.0) carries, of Llama 4's widths: columns
framework, version, device, kernel_source, moe_dtype, num_tokens, num_experts, moe_tp_size, moe_ep_size, distribution,
latency (ms). Half of the shapes are fitted, the others judged. Writes planners/catalog/grouped_matmul/*.yaml and
planners/evidence/grouped_matmuls.csv. Needs scipy (extra `fit`); takes about five minutes on one core.
"""

import csv
import gzip
import re
import sys
from collections import defaultdict
from dataclasses import astuple, fields
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
from scipy.optimize import least_squares

from planners.evidence.grouped_matmuls import CELLS, Cell, is_fitted, speeds, work_of
from planners.timing.grouped_matmul import DECODE_TOKENS, ROW_BYTES

FOLDER = Path(__file__).parents[1] / "planners" / "catalog" / "grouped_matmul"
SOURCE = "PyPI aiconfigurator-core 0.12.0, systems/data/*/moe_perf.parquet (Apache-2.0)"
ENGINES = {"VLLM": "vllm", "SGLang": "sglang", "TRTLLM": "tensorrt-llm"}
GPUS = {
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA GB300": "gb300",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
}
NAMES = (
    *("launch", "expert", "memory", "compute", "row", "token"),
    *("sharpness", "narrow_compute", "narrow_memory", "slower", "lone"),
)
EXPECTED = np.log([2e-5, 3e-7, 0.8, 0.6, 1, 0.3, 2, 0.05, 0.02, 0.9, 0.3])
"""Starting point of a fit; `slower` is the share of the bandwidth in prefill over that in decoding."""
SPREAD = np.array([2, 3, 0.4, 0.5, 2, 2, 0.7, 2, 2, 0.3, 2])
LEAST = EXPECTED - np.array([5, 6, 3, 3, 6, 6, 0.69, 6, 6, 1.5, 6])
MOST = EXPECTED + np.array([3, 5, -np.log(0.8), -np.log(0.6), 5, 5, 1.6, 4, 4, -np.log(0.9), 4])
SAMPLE, TOKENS, SKEWS = 12, (1, 8, 64, 128, 512, 2048, 16384), (0.0, 1.2)
"""Cases of each kernel and GPU that are drawn for the committed table, from these tokens, each with every skew."""
FEWEST = 100
"""Cells below which a kernel is left out."""

Key = tuple[str, str, str, str, str]


def read_kernels(path: Path) -> list[Cell]:
    """All cells; repeated rows of one cell are averaged."""
    repeated: dict[tuple[object, ...], list[float]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            law, _, exponent = row["distribution"].rpartition("_")
            key = (
                ENGINES[row["framework"]],
                row["version"],
                row["kernel_source"],
                GPUS[row["device"]],
                row["moe_dtype"].replace("bfloat16", "bf16"),
                *(int(row[name]) for name in ("num_experts", "moe_tp_size", "moe_ep_size", "num_tokens")),
                float(exponent) if law else 0.0,
            )
            repeated[key].append(float(row["latency"]))
    names = [field.name for field in fields(Cell)]
    return [Cell(**dict(zip(names, (*key, fmean(times)), strict=True))) for key, times in repeated.items()]  # type: ignore[arg-type]


class Table:
    """The cells of one kernel as arrays: a row each, a column for each group of experts with like rows."""

    def __init__(self, cells: list[Cell]) -> None:
        works = [work_of(cell) for cell in cells]
        bandwidth, peak = speeds(cells[0].hardware, cells[0].dtype)
        most = max(len(work.rows) for work in works)
        padded = np.array([[*work.rows, *[(0.0, 1.0)] * (most - len(work.rows))] for work in works])
        self.count, self.rows = padded[:, :, 0], padded[:, :, 1]
        tiled = [[work.in_tiles(rows) for rows in of_cell] for work, of_cell in zip(works, self.rows, strict=True)]
        self.tiled = np.array(tiled)
        self.read = np.array([work.expert_bytes for work in works]) / bandwidth
        self.row = np.array([work.row_flops for work in works]) / peak
        self.narrow = 256 / np.array([work.width for work in works])
        self.tokens = np.array([work.tokens for work in works])
        self.prefill = self.tokens > DECODE_TOKENS
        self.passed = works[0].hidden * ROW_BYTES / bandwidth
        self.measured = np.array([cell.milliseconds for cell in cells]) / 1e3

    def seconds(self, point: np.ndarray) -> np.ndarray:
        """The law (planners/timing/grouped_matmul.py) on all cells."""
        launch, expert, memory, compute, row, token, power, narrow_compute, narrow_memory, slower, lone = np.exp(point)
        share = np.where(self.prefill, memory * slower, memory)
        read = (self.read * (1 / share + narrow_memory * self.narrow))[:, None]
        multiply = self.tiled * (self.row * (1 / compute + narrow_compute * self.narrow))[:, None]
        experts = (self.count * (read**power + multiply**power) ** (1 / power)).sum(1)
        passes = row * (self.count * self.rows).sum(1) + token * self.tokens
        activated = self.count.sum(1)
        few = lone * self.read * np.minimum(1.0, activated)
        return np.asarray(launch + expert * activated + experts + few + passes * self.passed)

    def errors(self, point: np.ndarray) -> np.ndarray:
        """Absolute relative errors."""
        return np.asarray(np.abs(self.seconds(point) / self.measured - 1))


def fitted(table: Table) -> np.ndarray:
    """The point of least robust cost, 10 % within which a cell is as good as met.

    Some cases run several times slower than all like them, whatever the number of tokens (`slow_cases`). Cauchy's loss
    lets such cells go; it has several minima, so that it begins where a loss with one ends.
    """

    def residuals(point: np.ndarray) -> np.ndarray:
        pulls = 0.3 * (point - EXPECTED) / SPREAD
        return np.concatenate([np.log(table.seconds(point) / table.measured), pulls])

    point, bounds = EXPECTED, (LEAST, MOST)
    for loss in ("soft_l1", "cauchy"):
        inside = np.clip(point, LEAST + 1e-6, MOST - 1e-6)
        point = least_squares(residuals, inside, loss=loss, f_scale=0.1, max_nfev=40, bounds=bounds).x
    return np.asarray(point)


def line_of(key: Key, point: np.ndarray, errors: dict[str, np.ndarray]) -> str:
    """A kernel as a line of YAML."""
    _, version, kernel, gpu, dtype = key
    values = dict(zip(NAMES, np.exp(point), strict=True))
    values["prefill_memory"] = values["memory"] * values.pop("slower")
    numbers = [
        f"{name}: {1e6 * value:.4g} us" if name in ("launch", "expert") else f"{name}: {min(value, _most(name)):.4g}"
        for name, value in values.items()
    ]
    judged = [
        f"{name}: {{median: {np.median(e):.4f}, p90: {np.quantile(e, 0.9):.4f}, num_cells: {len(e)}}}"
        for name, e in errors.items()
    ]
    head = [f"kernel: {kernel}", f'version: "{version}"', f"hardware: {gpu}", f"dtype: {dtype}"]
    return "  - {" + ", ".join([*head, *numbers, *judged]) + "}"


def _most(name: str) -> float:
    return 1.0 if name in ("memory", "prefill_memory", "compute") else np.inf


def left_out_gpu(key: Key, points: dict[Key, np.ndarray]) -> np.ndarray | None:
    """Factors of a kernel from its other GPUs alone: their geometric mean; None where it has no other."""
    others = [p for k, p in points.items() if (k[0], k[2], k[4]) == (key[0], key[2], key[4]) and k[3] != key[3]]
    return np.mean(others, axis=0) if others else None


def sampled(cells: list[Cell]) -> list[Cell]:
    """Cases of unfitted shapes, each with every skew, drawn by name so that a new run draws the same."""
    by_case: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.tokens in TOKENS and cell.skew in SKEWS and not is_fitted(cell.experts, cell.tp, cell.ep):
            by_case[cell.case].append(cell)
    whole = sorted((case for case, members in by_case.items() if len(members) == len(SKEWS)), key=str)
    drawn = Random(str(cells[0].case)).sample(whole, min(SAMPLE, len(whole)))
    return [cell for case in drawn for cell in sorted(by_case[case], key=lambda cell: cell.skew)]


def main(path: str) -> int:
    """Fit, judge and write; prints the errors."""
    groups: dict[Key, list[Cell]] = defaultdict(list)
    for cell in read_kernels(Path(path)):
        groups[cell.engine, cell.version, cell.kernel, cell.hardware, cell.dtype].append(cell)
    lines: dict[str, list[str]] = defaultdict(list)
    points: dict[Key, np.ndarray] = {}
    judged: dict[Key, Table] = {}
    chosen: list[Cell] = []
    for key, cells in sorted(groups.items()):
        halves = [[c for c in cells if is_fitted(c.experts, c.tp, c.ep) == half] for half in (True, False)]
        if min(map(len, halves)) < FEWEST:
            continue
        known, judged[key] = Table(halves[0]), Table(halves[1])
        points[key] = fitted(known)
        errors = {"fitted": known.errors(points[key]), "unfitted": judged[key].errors(points[key])}
        lines[key[0]].append(line_of(key, points[key], errors))
        sys.stdout.write(lines[key[0]][-1] + "\n")
        chosen += sampled(cells)
    _report(judged, points)
    _write(lines, chosen)
    return 0


def _report(judged: dict[Key, Table], points: dict[Key, np.ndarray]) -> None:
    """Errors of unfitted shapes by engine, and of GPUs that were left out wholly."""
    for engine in ("", *ENGINES.values()):
        own = [table.errors(points[key]) for key, table in judged.items() if engine in ("", key[0])]
        _print(f"unfitted shapes, {engine or 'all'}", np.concatenate(own))
    for gpu in GPUS.values():
        pairs = [(judged[key], left_out_gpu(key, points)) for key in judged if key[3] == gpu]
        foreign = [table.errors(point) for table, point in pairs if point is not None]
        if foreign:
            _print(f"GPU left out: {gpu}", np.concatenate(foreign))


def _print(name: str, errors: np.ndarray) -> None:
    median, p90 = np.median(errors), np.quantile(errors, 0.9)
    sys.stdout.write(f"{name}: {len(errors):,} cells, median {median:.1%}, p90 {p90:.1%}\n")


def _write(lines: dict[str, list[str]], chosen: list[Cell]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for engine, kernels in lines.items():
        text = [
            "# Written by `python benchmarks/grouped_matmuls.py` from measured kernels.",
            f"name: {engine}",
            f"description: time of {engine}'s routed experts of Llama 4's widths, one law a kernel, GPU and format",
            f'source: "{SOURCE}"',
            "fitted_on: every other shape of tp, ep and experts (planners/evidence/grouped_matmuls.py, is_fitted)",
            "kernels:",
            *kernels,
        ]
        (FOLDER / f"{engine}.yaml").write_text("\n".join(text) + "\n", encoding="utf-8")
    with CELLS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Cell)])
        writer.writerows([*astuple(cell)[:-1], f"{cell.milliseconds:.5g}"] for cell in chosen)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.search(r"\.csv\.gz$", sys.argv[1]):
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1]))
