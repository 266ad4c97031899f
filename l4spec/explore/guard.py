"""Access control of the local page: checks of Host and Origin, and headers of answers."""

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
"""Host names of this machine in requests. A page of another site whose name was bound to 127.0.0.1 sends its own."""
HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer. Access-Control-Allow-Origin is missing on purpose: no other origin reads anything."""


def policy(nonce: str) -> str:
    """The Content-Security-Policy of the page: its own style and script, its own server, and no HTML made by script."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


class Guard:
    """ASGI middleware: refuses requests that a page of another origin caused, and adds `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "content-security-policy" not in headers:
                    headers["content-security-policy"] = "default-src 'none'; frame-ancestors 'none'"
            await send(message)

        opens_page = scope["method"] == "GET"  # as from a link in another page, which cannot read the answer
        app = (
            self.app
            if opens_page or _is_own(Headers(scope=scope))
            else PlainTextResponse("another origin", status_code=403)
        )
        await app(scope, receive, with_headers)


def _is_own(headers: Headers) -> bool:
    """True if no other origin is named: browsers send `Origin` with every POST, and current ones `Sec-Fetch-Site`."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host', '')}":
        return False
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def guarded(app: ASGIApp) -> ASGIApp:
    """The application as it may be served."""
    return Guard(TrustedHostMiddleware(app, allowed_hosts=list(HOSTS), www_redirect=False))
