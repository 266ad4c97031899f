"""Measured static batches beside their law, for `l4spec accuracy`."""

from collections.abc import Iterable

from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import whole
from planners.evidence.static_batches import BatchGroup

_INTRO = (
    "As many equal requests as a batch's size, sent at once, prompts as long as outputs, 128 to 2,048 tokens "
    "(argonne-lcf/LLM-Inference-Bench 4211f5d, BSD-3), beside the law of `planners/timing/static_batch.py`. Only "
    "batches of models that no factor was fitted on; factors are those of three others on the same engine and GPU. "
    "Weights are assumed to be 16 bits wide and the A100 to be that with 40 GB. Left out: rows whose latency and "
    "throughput disagree (354 of 474 of llama.cpp), models without a spec (71), and 12 rows that are faster than "
    "reading the weights once a token. Repeated rows differ by 1.4 % in the median, 2.0 % in one of ten (23 pairs).",
)


def batch_sections(groups: Iterable[BatchGroup]) -> Page:
    """Errors by engine and GPU."""
    rows = tuple(
        (
            group.engine,
            group.hardware,
            whole(group.num_rows),
            whole(len(group.models)),
            f"{100 * group.median:.1f} %",
            f"{100 * group.p90:.1f} %" if group.num_rows >= 20 else "-",
            f"{100 * group.bias:+.1f} %",
        )
        for group in groups
    )
    headers = ("engine", "GPU", "rows", "models", "median error", "p90", "bias")
    return (Section("Static batches", (Lines(_INTRO), Table(headers, rows, "llrrrrr"))),)
