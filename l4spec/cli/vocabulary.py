"""`l4spec vocabulary`: cost of a vocabulary in a model, and savings of its tokenizer on a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import write
from l4spec.cli.request import compiled
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.runtime.tokenizer import TextTokenizer
    from planners.sweep.vocabularies import CountedText

MOST_TEXT_BYTES = 64 << 20
_FIELD = "text.vocab_size"


@app.command("vocabulary")
def vocabulary_command(
    spec: o.SpecArgument,
    size: Annotated[
        list[int] | None,
        typer.Option("--size", metavar="N", min=1, max=1 << 30, help="A vocabulary of N tokens; repeatable."),
    ] = None,
    tokenizer: Annotated[
        list[Path] | None,
        typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json or tokenizer.model; repeatable."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="With --tokenizer: text to count tokens of; repeatable."),
    ] = None,
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Compare vocabularies of a model: parameters, FLOPs per token, tokens and FLOPs per byte of text.

    A larger vocabulary makes each token more expensive and a text shorter; which effect is larger depends on the text.
    """
    from l4spec.report.vocabulary_page import vocabulary_page
    from l4spec.runtime.tokenizer import open_tokenizer
    from planners.sweep.vocabularies import padded, vocabulary_table

    sizes, files, texts = size or [], tokenizer or [], text or []
    _require_something(sizes, files, texts)
    sizes_by_name = {f"{each:,} tokens": each for each in sizes}
    counts: list[CountedText] = []
    for file in files:
        opened = open_tokenizer(file)
        sizes_by_name[str(file)] = padded(opened.vocab_size)
        counts += (_counted(opened, str(file), each) for each in texts)
    variants = [
        (name, compiled(spec, [*(overrides or ()), f"{_FIELD}={number}"])) for name, number in sizes_by_name.items()
    ]
    table = vocabulary_table(variants[0][1].name, variants, counts)
    write(table, lambda: vocabulary_page(table), format, out, force=force)


def _counted(tokenizer: "TextTokenizer", name: str, file: Path) -> "CountedText":
    """Number of tokens of a file by a tokenizer. Raises UserError for a file without text."""
    from l4spec.spec.files import read_utf8
    from planners.sweep.vocabularies import CountedText

    text = read_utf8(file, MOST_TEXT_BYTES)
    if not text:
        raise UserError([Problem(f"{str(file)!r} holds no text", path="--text")])
    return CountedText(name, str(file), len(text.encode()), len(tokenizer.encode(text)))


def _require_something(sizes: Sequence[int], files: Sequence[Path], texts: Sequence[Path]) -> None:
    if not sizes and not files:
        raise UserError(
            [Problem("nothing to compare", path="--size", hint="--size 128256 --size 202048, or --tokenizer FILE")]
        )
    if texts and not files:
        raise UserError([Problem("needs --tokenizer", path="--text", hint="a size alone makes no tokens")])
