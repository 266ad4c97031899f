"""Measures how far times of routed experts can be predicted at all: by a measurement of the sibling GPU, and how many
cases run at a slow tactic.

    python benchmarks/kernel_noise.py FILE.csv.gz

FILE is that of `benchmarks/grouped_matmuls.py`. Siblings are GPUs with the same chip or its successor: H100 and H200;
B200, GB200, B300 and GB300. A sibling predicts a cell by its own measured time, scaled by the median ratio of the two
GPUs for this kernel and format: more than a law of shapes can do, since it knows the case. A case (shape and skew) is
slow if its times of all numbers of tokens are in the median `SLOW` times those of the law, which follows like shapes.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import permutations
from math import exp, log
from pathlib import Path
from statistics import median

from benchmarks.grouped_matmuls import read_kernels
from planners.evidence.grouped_matmuls import MATTERS, Cell, is_fitted, predicted_ms
from planners.evidence.spread import percentile
from planners.timing.grouped_matmul import grouped_matmul_laws

FAMILIES = {
    **dict.fromkeys(("h100-sxm", "h200"), "Hopper"),
    **dict.fromkeys(("b200", "gb200", "b300", "gb300"), "Blackwell"),
}
SLOW = 1.42
"""A slow case takes this many times as long as the law says."""

Key = tuple[object, ...]


def kernel_of(cell: Cell) -> Key:
    """Key of a kernel and format in a family of GPUs."""
    return cell.engine, cell.version, cell.kernel, cell.dtype, FAMILIES.get(cell.hardware)


def shape_of(cell: Cell) -> Key:
    """Key of a cell, equal for siblings and for all skews."""
    return *kernel_of(cell), cell.experts, cell.tp, cell.ep, cell.tokens


def siblings(cells: Iterable[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Pairs of cells that differ in their GPU alone, in both orders."""
    alike: dict[Key, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.hardware in FAMILIES:
            alike[*shape_of(cell), cell.skew].append(cell)
    for members in alike.values():
        yield from permutations(members, 2)


def errors_of_siblings(pairs: Iterable[tuple[Cell, Cell]]) -> dict[Key, list[float]]:
    """Absolute relative errors of predicting the first of each pair by the second, by engine and family."""
    logs = [(one, other, log(one.milliseconds / other.milliseconds)) for one, other in pairs]
    ratios: dict[Key, list[float]] = defaultdict(list)
    for one, other, ratio in logs:
        ratios[*kernel_of(one), one.hardware, other.hardware].append(ratio)
    usual = {key: median(values) for key, values in ratios.items()}
    errors: dict[Key, list[float]] = defaultdict(list)
    for one, other, ratio in logs:
        if not is_fitted(one.experts, one.tp, one.ep):
            expected = usual[*kernel_of(one), one.hardware, other.hardware]
            errors[one.engine, FAMILIES[one.hardware]].append(abs(exp(expected - ratio) - 1))
    return errors


def directions_of_siblings(pairs: Iterable[tuple[Cell, Cell]]) -> dict[Key, list[bool]]:
    """For each skewed cell that matters: True if its sibling differs from a balanced one in the same direction."""
    pairs = list(pairs)
    balanced = {(*shape_of(one), one.hardware): one.milliseconds for one, _ in pairs if not one.skew}
    same: dict[Key, list[bool]] = defaultdict(list)
    for one, other in pairs:
        both = [balanced.get((*shape_of(each), each.hardware)) for each in (one, other)]
        if not one.skew or is_fitted(one.experts, one.tp, one.ep) or None in both:
            continue
        first, second = (each.milliseconds / level for each, level in zip((one, other), both, strict=True) if level)
        if not 1 / MATTERS <= first <= MATTERS:
            same[one.engine, FAMILIES[one.hardware]].append((first > 1) == (second > 1))
    return same


def slow_cases(cells: Iterable[Cell]) -> tuple[dict[str, tuple[int, int]], list[float]]:
    """By engine the number of slow cases and of all; and the law's errors on unfitted shapes outside of slow cases."""
    cases: dict[Key, list[tuple[Cell, float]]] = defaultdict(list)
    for cell in cells:
        laws = grouped_matmul_laws(cell.engine)
        law = laws.find(cell.hardware, cell.dtype, cell.kernel) if laws else None
        if law is not None and law.version == cell.version:
            key = cell.version, cell.hardware, *kernel_of(cell), cell.experts, cell.tp, cell.ep, cell.skew
            cases[key].append((cell, predicted_ms(cell)))
    counts: dict[str, tuple[int, int]] = {}
    errors: list[float] = []
    for members in cases.values():
        slow = median(cell.milliseconds / predicted for cell, predicted in members) > SLOW
        engine = members[0][0].engine
        number, of = counts.get(engine, (0, 0))
        counts[engine] = number + slow, of + 1
        if not slow:
            unfitted = (pair for pair in members if not is_fitted(pair[0].experts, pair[0].tp, pair[0].ep))
            errors += [abs(predicted / cell.milliseconds - 1) for cell, predicted in unfitted]
    return counts, errors


def _print_errors(name: str, errors: list[float]) -> None:
    half, most = percentile(sorted(errors), 50), percentile(sorted(errors), 90)
    sys.stdout.write(f"{name}: {len(errors):,} pairs or cells, median {half:.1%}, p90 {most:.1%}\n")


def _print_directions(same: Mapping[Key, list[bool]]) -> None:
    everything = [right for values in same.values() for right in values]
    for key, values in [*sorted(same.items(), key=str), (("all",), everything)]:
        share = sum(values) / len(values)
        sys.stdout.write(f"direction, {' '.join(map(str, key))}: {len(values):,} pairs, {share:.1%} alike\n")


def main(path: str) -> int:
    """Print errors and directions of siblings, slow cases and the law's errors without them."""
    cells = read_kernels(Path(path))
    pairs = list(siblings(cells))
    errors = errors_of_siblings(pairs)
    for key, values in sorted(errors.items(), key=str):
        _print_errors(f"sibling, {' '.join(map(str, key))}", values)
    _print_errors("sibling, all", [error for values in errors.values() for error in values])
    _print_directions(directions_of_siblings(pairs))
    counts, fast = slow_cases(cells)
    for engine, (number, of) in counts.items():
        sys.stdout.write(f"slow cases, {engine}: {number:,} of {of:,} ({number / of:.1%})\n")
    _print_errors("law without slow cases, unfitted shapes", fast)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1]))
