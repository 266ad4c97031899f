"""`l4spec accuracy`: published figures beside the planner's predictions."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import deliver, write


class Split(StrEnum):
    """Use of a row: fitting or testing."""

    CALIBRATE = "calibrate"
    TEST = "test"


RowsOption = Annotated[
    Path | None,
    typer.Option("--rows", metavar="FILE", help="Replay a CSV file of your own.  [default: the packaged rows]"),
]
SplitOption = Annotated[
    Split | None, typer.Option("--split", help="Only rows marked calibrate, or only those marked test.")
]
DetailOption = Annotated[bool, typer.Option("--verbose", "-v", help="Add every row, published and predicted.")]
ExpertKernelsOption = Annotated[
    bool,
    typer.Option(
        "--expert-kernels", help="Time routed experts from tables of measured kernels, where the catalogue has one."
    ),
]
DocumentOption = Annotated[bool, typer.Option("--document", help="Write docs/accuracy.md: Markdown with every row.")]


@app.command("accuracy")
def accuracy_command(
    rows: RowsOption = None,
    split: SplitOption = None,
    expert_kernels: ExpertKernelsOption = False,
    verbose: DetailOption = False,
    document: DocumentOption = False,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Compare predictions with published measurements and report the errors."""
    from l4spec.report.accuracy import accuracy_document, accuracy_page, accuracy_report, rows_sections
    from l4spec.report.accuracy_laws import batch_sections, kernel_sections
    from l4spec.report.page import to_markdown
    from planners.evidence.grouped_matmuls import read_cells, summarise_cells
    from planners.evidence.replay import replay
    from planners.evidence.rows import published_rows, read_rows
    from planners.evidence.static_batches import read_batches, summarise_batches

    chosen = published_rows() if rows is None else read_rows(rows)
    kept = (row for row in chosen if split is None or row.split == split.value)
    predictions = replay(kept, expert_kernels=expert_kernels)
    if document:
        deliver(to_markdown(accuracy_document(predictions)), out, force=force)
        return
    packaged = rows is None and split is not Split.CALIBRATE
    kernels = summarise_cells(read_cells()) if packaged else ()
    batches = summarise_batches(read_batches()) if packaged else ()
    details = kernel_sections(kernels) + batch_sections(batches) if packaged else ()
    details += rows_sections(predictions) if verbose else ()
    write(
        accuracy_report(predictions, kernels, batches),
        lambda: accuracy_page(predictions, by_model=True) + details,
        format,
        out,
        force=force,
    )
