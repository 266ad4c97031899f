"""Arguments and options that several commands share, each with its help."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from l4spec.cli.completion import specs


class Format(StrEnum):
    """Output format of a report."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"


class RowFormat(StrEnum):
    """Output format of a report with many rows."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"
    CSV = "csv"


class Emit(StrEnum):
    """Target of a plan's launch files."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    TORCHTITAN = "torchtitan"
    K8S = "k8s"
    SBATCH = "sbatch"


def tokens_from(least: int | None = None) -> Callable[[str | int], int]:
    """A reader of token counts as `1M` or `128Ki` for an option; fewer than `least` are refused."""

    def read(text: str | int) -> int:
        from l4spec.units import parse_count

        count = text if isinstance(text, int) else parse_count(text)
        if least is not None and count < least:
            raise ValueError(f"expected at least {least}, found {count:,}")
        return count

    return read


def file_to_write(text: str) -> Path:
    """The path of an `--out FILE`: one that ends like a folder's names no file. Raises ValueError."""
    if text.endswith(("/", os.sep)):
        raise ValueError(f"{text[:200]!r} names a folder, expected the name of a file")
    return Path(text)


tokens = tokens_from()
"""Parser of token counts whose bounds the planner or the runtime checks."""
_SPEC = "A spec: the path of a YAML file, or a shipped name (`l4spec ls`)."
SpecArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="SPEC", help=_SPEC, show_default=False, autocompletion=specs)
]
SpecsArgument: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        metavar="SPEC", help="Paths of YAML files or shipped names.", show_default=False, autocompletion=specs
    ),
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field, such as text.parts.moe.num_experts=32; repeatable.",
        show_default=False,
    ),
]
RecipeSetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field of the recipe, such as phases[0].tokens=1M; repeatable.",
        show_default=False,
    ),
]
OutOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", parser=file_to_write, help="Write to a file instead of the terminal."),
]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]
FormatOption: TypeAlias = Annotated[Format, typer.Option("--format", help="How to write the report.")]

TilesOption: TypeAlias = Annotated[
    int, typer.Option("--tiles", metavar="N", help="Image tiles in one step of the vision tower.")
]
EmitOption: TypeAlias = Annotated[
    Emit | None,
    typer.Option("--emit", help="Print the launch command or config of the plan.", show_default=False),
]
ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="ID", help="With --emit: the checkpoint.  [default: the one in the spec's sources]"
    ),
]
VerifyOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Compare every file of a checkpoint with the digest that was saved with it."
    ),
]
VerboseOption: TypeAlias = Annotated[bool, typer.Option("--verbose", "-v", help="Add all detailed tables.")]
ExplainOption: TypeAlias = Annotated[
    bool, typer.Option("--explain", help="Add the formula of each number and the source of every constant.")
]
MarkdownOption: TypeAlias = Annotated[bool, typer.Option("--markdown", help="The same as --format markdown.")]
