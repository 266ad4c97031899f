"""Output of commands: to the terminal in characters that it can show, or atomically to a file."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from l4spec.cli.options import Format
from l4spec.errors import Problem, UserError, os_reason
from l4spec.spec.files import what_stands_at

if TYPE_CHECKING:
    from l4spec.report.page import Page


class JsonDocument(Protocol):
    """Document that can be written as JSON: every pydantic model."""

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """The document as JSON."""


def write(
    document: "JsonDocument | Callable[[], JsonDocument]",
    page: "Callable[[], Page]",
    style: Format,
    out: Path | None,
    *,
    force: bool,
) -> None:
    """Write a report in the requested format: the document itself as JSON, else its page as text, Markdown or HTML.

    This is the one place that knows the formats; a page, and a document that is a function, is made only where one
    is written.
    """
    deliver(_in_format(document, page, style, to_file=out is not None), out, force=force)


def _in_format(
    document: "JsonDocument | Callable[[], JsonDocument]",
    page: "Callable[[], Page]",
    style: Format,
    *,
    to_file: bool,
) -> str:
    if style is Format.JSON:
        made = document() if callable(document) else document
        return made.model_dump_json(indent=2)
    return page_in(page(), style, to_file=to_file)


def page_in(page: "Page", style: Format, *, to_file: bool = False) -> str:
    """A page as text, Markdown or HTML; text has the width and colours of its destination."""
    if style is Format.HTML:
        from l4spec.report.html import to_html

        return to_html(page)
    from l4spec.report.page import to_markdown, to_text

    if style is Format.MARKDOWN:
        return to_markdown(page)
    return to_text(page, _columns(to_file), colored=not to_file and _has_colors())


def _columns(to_file: bool) -> int:
    """Columns of a line: the terminal's, or 100 without one; `COLUMNS` overrides both."""
    from l4spec.report.columns import LEAST, PIPED

    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return max(int(given), LEAST)
    if to_file or not _is_terminal():
        return PIPED
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns or PIPED, LEAST)
    except (OSError, ValueError):
        return PIPED


def _has_colors() -> bool:
    """True if stdout is a terminal with colours and the user has not disabled them (https://no-color.org)."""
    return _is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_terminal() -> bool:
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:
        return False


def show_page(page: "Page") -> None:
    """Print a page as text."""
    show(page_in(page, Format.TABLE))


def show(text: str) -> None:
    """Print `text`, in ASCII where the terminal's encoding has no more."""
    typer.echo(printable(text, getattr(sys.stdout, "encoding", None)), nl=not text.endswith("\n"))


def show_piece(text: str) -> None:
    """Print a part of a line now; the rest follows."""
    typer.echo(printable(text, getattr(sys.stdout, "encoding", None)), nl=False)
    if sys.stdout is not None:
        sys.stdout.flush()


def complain(text: str) -> None:
    """Print one problem to stderr; a closed stderr is ignored."""
    with suppress(OSError, ValueError):
        typer.echo(printable(text, getattr(sys.stderr, "encoding", None)), err=True)


def printable(text: str, encoding: str | None) -> str:
    """`text`, in ASCII where an encoding has no more."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        from l4spec.report.page import to_ascii

        return to_ascii(text)
    return text


def deliver(text: str, out: Path | None, *, force: bool = False) -> None:
    """Print `text`, or write it to the file `out` and say so on stderr."""
    if out is None:
        show(text)
        return
    write_file(out, text, force=force)
    complain(f"wrote {out}")


@contextmanager
def cleared_up() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the program as an exception does, so that nothing half-written is left behind."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in ending if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_file(path: Path, content: str | bytes, *, force: bool) -> None:
    """Write `content` to `path` through a temporary file beside it, so that no half-written file is ever seen.

    A link is written through, and stays. Raises UserError when there is such a file or link and not `force`, when there
    is anything but a regular file, or when it cannot be written.
    """
    shown = str(path)[:200]
    try:
        target = Path(os.path.realpath(path))
        if os.path.isdir(target):
            raise UserError(f"{shown} is a folder", hint="name a file in it")
        if os.path.lexists(path) and not force:
            raise UserError(f"{shown} exists", hint="--force overwrites it")
        if target.is_symlink():
            raise UserError(f"{shown} is a link that leads around in a circle", hint="remove it first")
        if target.exists() and not target.is_file():
            what = what_stands_at(target.stat().st_mode)
            raise UserError(f"expected a regular file, found {what}: {shown}", hint="leave out --out to print")
        if isinstance(content, str):
            content = (content if content.endswith("\n") else f"{content}\n").encode("utf-8")
        _replace(target, content)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {shown!r}: {os_reason(error)}") from None


def check_drawing(svg: Path, *, force: bool) -> None:
    """Raise UserError, before the work whose result is drawn, where no picture could be drawn or written after it."""
    from l4spec.report.templating import require_templates

    check_file(svg, "--svg", force=force)
    require_templates()


def check_file(path: Path, option: str, *, force: bool) -> None:
    """Raise UserError, before the work whose result an option writes, where no file could be written after it."""
    if os.path.lexists(path) and not force:
        raise UserError([Problem(f"{str(path)[:200]} exists", option, hint="--force overwrites it")])
    if not path.parent.is_dir():
        raise UserError([Problem(f"{str(path.parent)[:200]} is no folder", option)])


def _replace(path: Path, content: bytes) -> None:
    import tempfile

    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
