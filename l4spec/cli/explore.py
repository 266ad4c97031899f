"""`l4spec explore`: a page on this machine where a model and its deployment are moved, and the plan follows."""

from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.completion import specs
from l4spec.cli.output import show
from l4spec.errors import UserError

SpecOrScout = Annotated[
    str, typer.Argument(metavar="SPEC", help="A path or a shipped name to start with.", autocompletion=specs)
]
PortOption = Annotated[
    int,
    typer.Option(
        "--port",
        metavar="N",
        help="The port on 127.0.0.1.  [default: a free one]",
        min=0,
        max=65535,
        show_default=False,
    ),
]


@app.command("explore")
def explore_command(spec: SpecOrScout = "scout", overrides: o.SetOption = None, port: PortOption = 0) -> None:
    """Open a local page with controls for a model and its deployment, and a plan that updates.

    The page is served on 127.0.0.1 only, writes nothing to disk and makes no network requests. Ctrl-C ends it.
    """
    from l4spec.cli.request import compiled

    compiled(spec, overrides)  # what is wrong with the spec is said here, not on a page
    try:
        import jinja2  # noqa: F401 - the page is a template

        from l4spec.explore.explorer import Explorer
        from l4spec.explore.serve import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "jinja2"):
            raise
        raise UserError("the page needs starlette, uvicorn and jinja2", hint="pip install 'l4spec[explore]'") from None
    serve(Explorer(spec, tuple(overrides or ())), port, lambda address: show(f"{address}\nCtrl-C ends it."))
