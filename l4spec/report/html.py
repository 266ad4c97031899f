"""A page as one self-contained HTML file: style, drawings and every number's origin inside, without scripts."""

from l4spec.report.page import Block, Figure, Lines, Page
from l4spec.report.templating import markup, render


def to_html(page: Page) -> str:
    """The page as an HTML document; a sentence that begins it is its title. Raises UserError without jinja2."""
    title, body = _titled(page)
    return render("page.html.j2", page=body, title=title, kind=_kind, draw=_draw, width=_width)


def _titled(page: Page) -> tuple[str, Page]:
    """The first sentence, and the page without it."""
    blocks = page[0].blocks if page else ()
    if not blocks or not isinstance(blocks[0], Lines) or not blocks[0].lines:
        return "l4spec", page
    title, *others = blocks[0].lines
    left = (Lines(tuple(others)), *blocks[1:]) if others else blocks[1:]
    return title, (page[0]._replace(blocks=left), *page[1:])


def _kind(block: Block) -> str:
    return type(block).__name__


def _draw(figure: Figure) -> object:
    return markup(render(figure.template, about=figure.about, **figure.values))


def _width(part: int, whole: int) -> str:
    """A bar's share of its row in percent, with a minimum for small parts and a maximum of 100."""
    return f"{min(max(100 * part / whole, 0.3), 100):.2f}" if part > 0 and whole > 0 else "0"


__all__ = ["to_html"]
