"""The one environment of every template: text is escaped, characters that no XML may hold are dropped."""

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4spec.errors import UserError
from l4spec.report.page import Figure, Section

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "templates"
EXTRA = "pip install 'l4spec[report]'"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks that turn the direction of text: a name could make its neighbors read otherwise."""


def render(template: str, folder: Path = FOLDER, /, **values: Any) -> str:
    """The template of that file name in `folder` with the values, each escaped; a missing one is a mistake of ours.

    Raises UserError that names the extra where jinja2 is not installed.
    """
    return _environment(folder).get_template(template).render(**values)


def figure_svg(section: Section) -> str:
    """The first drawing of a section as a picture of its own.

    Raises UserError where it has none, and where jinja2 is not installed.
    """
    figure = next((block for block in section.blocks if isinstance(block, Figure)), None)
    if figure is None:
        raise UserError(f"{section.title}: nothing to draw")
    return render(figure.template, about=figure.about, **figure.values)


def require_templates() -> None:
    """Raise UserError that names the extra where jinja2 is not installed: for work that is to be drawn at its end."""
    _environment(FOLDER)


@cache
def _environment(folder: Path) -> "Environment":
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise UserError("pictures and HTML need jinja2", hint=f"{EXTRA}, or choose another --format") from None
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _clean(value: Any) -> Any:
    """The value as it may be in a document; text that is marked as markup stays marked."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _TURNING.sub("", _NOT_XML.sub("", value))


def markup(text: str) -> object:
    """Rendered markup, which other templates include unescaped."""
    from markupsafe import Markup

    return Markup(text)
