"""Measured kernels of routed experts beside the law of grouped matmuls, for `l4spec accuracy`."""

from collections.abc import Iterable

from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import whole
from planners.evidence.grouped_matmuls import KernelGroup

_INTRO = (
    "Experts of Llama 4's widths on one rank, measured kernel by kernel (PyPI aiconfigurator-core 0.12.0, Apache-2.0), "
    "beside the law of `planners/timing/grouped_matmul.py`. A sample of cells whose shape (tp, ep, experts) no "
    "coefficient was fitted on; each with balanced and with skewed routing (shares drawn from a power law, exponent "
    "1.2; the busiest rank). Direction: of the pairs whose times differ by more than 10 %, how often the law says "
    "which one is faster.",
)


def kernel_sections(groups: Iterable[KernelGroup]) -> Page:
    """Errors by engine and number format."""
    rows = tuple(
        (
            group.engine,
            group.dtype,
            whole(group.num_cells),
            whole(group.num_gpus),
            f"{100 * group.median:.1f} %",
            f"{100 * group.p90:.1f} %" if group.num_cells >= 20 else "-",
            whole(group.num_skewed),
            "-" if group.right_direction is None else f"{100 * group.right_direction:.0f} %",
        )
        for group in groups
    )
    headers = ("engine", "format", "cells", "GPUs", "median error", "p90", "skewed pairs", "right direction")
    return (Section("Kernels of routed experts", (Lines(_INTRO), Table(headers, rows, "llrrrrrr"))),)
