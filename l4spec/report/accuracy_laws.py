"""Kernels of routed experts and static batches beside their laws, and repeated figures, for `l4spec accuracy`."""

from collections.abc import Iterable

from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import whole
from planners.evidence.grouped_matmuls import KernelGroup
from planners.evidence.repeats import Repeats
from planners.evidence.static_batches import BatchGroup
from planners.timing.likeness import ROWS_OF_A_P90

_KERNELS = (
    "Experts of Llama 4's widths on one rank, measured kernel by kernel (PyPI aiconfigurator-core 0.12.0, Apache-2.0), "
    "beside the law of `planners/timing/grouped_matmul.py`. A sample of cells whose shape (tp, ep, experts) no "
    "coefficient was fitted on; each with balanced and with skewed routing (shares drawn from a power law, exponent "
    "1.2; the busiest rank). Direction: of the pairs whose times differ by more than 10 %, how often the law says "
    "which one is faster.",
    "How far these times can be predicted at all (`benchmarks/kernel_noise.py`, all 298,329 cells): a cell's own time "
    "on a sibling GPU (H100 and H200; B200, GB200, B300 and GB300), scaled by the median ratio of both, is 3.1 % off "
    "in the median and 19.6 % in one of ten, and has the direction of skew right in 91 % (TensorRT-LLM on Blackwell: "
    "34.2 % in one of ten, 85 %). In 8 % of TensorRT-LLM's cases a kernel takes 1.4 to 7 times as long as in all like "
    "shapes, with every number of tokens: its autotuner settled on a slow tactic, which no law of shapes can know. "
    "Without them the law is 6.6 % off in the median and 27.9 % in one of ten.",
)


_BATCHES = (
    "As many equal requests as a batch's size, sent at once, prompts as long as outputs, 128 to 2,048 tokens "
    "(argonne-lcf/LLM-Inference-Bench 4211f5d, BSD-3), beside the law of `planners/timing/static_batch.py`. Only "
    "batches of models that no factor was fitted on; factors are those of three others on the same engine and GPU. "
    "Weights are assumed to be 16 bits wide and the A100 to be that with 40 GB. Left out: rows whose latency and "
    "throughput disagree (354 of 474 of llama.cpp), models without a spec (71), and 12 rows that are faster than "
    "reading the weights once a token. Repeated rows differ by 1.4 % in the median, 2.0 % in one of ten (23 pairs).",
)


_REPEATS = (
    "Settings that one source published more than once: the rows differ in what no plan reads (version of the "
    "software, date), so that one prediction stands for all of them. Between figures: each against the median of its "
    "setting; no single prediction meets all of them. Predicted: the errors of this planner on the same rows. A "
    "setting with rows of both splits counts as calibrate. No source published a maximum throughput "
    "twice: noise neither explains nor excuses those errors.",
)


def repeat_sections(groups: Iterable[Repeats]) -> Page:
    """Differences between figures of one setting, beside the planner's errors on them."""
    rows = tuple(
        (
            group.quantity,
            group.split,
            whole(group.num_settings),
            whole(group.between.num_rows),
            whole(group.between.num_sources),
            *_errors(group.between.median, group.between.p90, group.between.num_rows),
            *_errors(group.predicted.median, group.predicted.p90, group.predicted.num_rows),
        )
        for group in groups
    )
    headers = ("quantity", "split", "settings", "rows", "sources", "between", "p90", "predicted", "p90")
    return (Section("Repeated figures of one setting", (Lines(_REPEATS), Table(headers, rows, "llrrrrrrr"))),)


def kernel_sections(groups: Iterable[KernelGroup]) -> Page:
    """Errors by engine and number format."""
    rows = tuple(
        (
            group.engine,
            group.dtype,
            whole(group.num_cells),
            whole(group.num_gpus),
            *_errors(group.median, group.p90, group.num_cells),
            whole(group.num_skewed),
            "-" if group.right_direction is None else f"{100 * group.right_direction:.0f} %",
        )
        for group in groups
    )
    headers = ("engine", "format", "cells", "GPUs", "median error", "p90", "skewed pairs", "right direction")
    return (Section("Kernels of routed experts", (Lines(_KERNELS), Table(headers, rows, "llrrrrrr"))),)


def batch_sections(groups: Iterable[BatchGroup]) -> Page:
    """Errors by engine and GPU."""
    rows = tuple(
        (
            group.engine,
            group.hardware,
            whole(group.num_rows),
            whole(len(group.models)),
            *_errors(group.median, group.p90, group.num_rows),
            f"{100 * group.bias:+.1f} %",
        )
        for group in groups
    )
    headers = ("engine", "GPU", "rows", "models", "median error", "p90", "bias")
    return (Section("Static batches", (Lines(_BATCHES), Table(headers, rows, "llrrrrr"))),)


def _errors(median: float, p90: float, num_rows: int) -> tuple[str, str]:
    """Median and 90th percentile, which few rows do not have."""
    return f"{100 * median:.1f} %", f"{100 * p90:.1f} %" if num_rows >= ROWS_OF_A_P90 else "-"
