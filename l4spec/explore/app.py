"""The ASGI application: one page, and five questions that its script asks as JSON."""

import gc
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from l4spec.explore.downloads import TARGETS
from l4spec.explore.explorer import Explorer, Reply
from l4spec.explore.guard import guarded, policy
from l4spec.explore.question import Question
from l4spec.report.templating import render
from planners.catalog import shipped_names
from planners.counts.kv_cache import KV_DTYPE_BYTES

MOST_BYTES = 1 << 16
"""Of a question; the page's own have about one kilobyte."""
TEMPLATES = Path(__file__).parent / "templates"
Handler = Callable[[Request], Awaitable[Response]]


def make_app(explorer: Explorer) -> ASGIApp:
    """The application that answers with `explorer`. It writes no file."""
    routes = [
        Route("/", _page(explorer), methods=["GET"]),
        Route("/api/model", _answering(lambda question: explorer.model(question.model)), methods=["POST"]),
        Route("/api/plan", _answering(explorer.plan), methods=["POST"]),
        Route("/api/suggest", _answering(explorer.suggest), methods=["POST"]),
        Route("/api/launch", _answering(explorer.launch), methods=["POST"]),
        Route("/api/report", _answering(explorer.report), methods=["POST"]),
    ]
    return guarded(Starlette(routes=routes))


def _page(explorer: Explorer) -> Handler:
    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = render(
            "explore.html.j2",
            TEMPLATES,
            nonce=nonce,
            models=explorer.models,
            hardware=shipped_names("hardware"),
            schemes=shipped_names("quantization"),
            engines=shipped_names("engines"),
            kv_dtypes=tuple(KV_DTYPE_BYTES),
            targets=TARGETS,
        )
        return HTMLResponse(html, headers={"content-security-policy": policy(nonce)})

    return page


def _answering(answer: Callable[[Question], Reply]) -> Handler:
    """A handler that reads a question and writes a reply; one that is none is refused with 400, 413 or 415."""

    async def handle(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return PlainTextResponse("expected application/json", status_code=415)
        body = await _body(request)
        if body is None:
            return PlainTextResponse(f"expected at most {MOST_BYTES} bytes", status_code=413)
        try:
            question = Question.model_validate_json(body)
        except ValidationError:
            return PlainTextResponse("expected model, fields and options as texts", status_code=400)
        return JSONResponse(answer(question), background=BackgroundTask(_collect))

    return handle


async def _collect() -> None:
    """Collect garbage between requests, if the server has disabled automatic collection, which would delay answers."""
    if not gc.isenabled():
        gc.collect()


async def _body(request: Request) -> bytes | None:
    """The body, or None as soon as it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            return None
    return body
