"""A page as one HTML file that asks for nothing: style, drawings and every number's origin inside, no script at all."""

from itertools import chain

from l4spec.report.page import Block, Figure, Lines, Page
from l4spec.report.templating import markup, render


def to_html(page: Page) -> str:
    """The page as an HTML document; its title is the page's first sentence. Raises UserError without jinja2."""
    lines = (
        block.lines for block in chain.from_iterable(section.blocks for section in page) if isinstance(block, Lines)
    )
    first = next((each[0] for each in lines if each), "")
    return render("page.html.j2", page=page, title=first or "l4spec", kind=_kind, draw=_draw, width=_width)


def _kind(block: Block) -> str:
    return type(block).__name__


def _draw(figure: Figure) -> object:
    return markup(render(figure.template, about=figure.about, **figure.values))


def _width(part: int, whole: int) -> str:
    """A bar's share of its row in percent, a sliver for what is small, full for what is too much."""
    return f"{min(max(100 * part / whole, 0.3), 100):.2f}" if part > 0 and whole > 0 else "0"


__all__ = ["to_html"]
