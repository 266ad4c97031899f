"""Serving the page on this machine alone, until Ctrl-C."""

import gc
import socket
from collections.abc import Callable

import uvicorn

from l4spec.errors import Problem, UserError, os_reason
from l4spec.explore.app import make_app
from l4spec.explore.explorer import Explorer

ADDRESS = "127.0.0.1"


def bound(port: int) -> socket.socket:
    """A socket on this machine's own address; port 0 takes a free one. Raises UserError where it cannot be had."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen()  # from now on a browser waits instead of being refused
    except (OSError, OverflowError) as error:
        listener.close()
        hint = "leave --port out: a free one is taken"
        raise UserError(
            [Problem(f"cannot serve on port {port}: {os_reason(error)}", path="--port", hint=hint)]
        ) from None
    return listener


def serve(explorer: Explorer, port: int, ready: Callable[[str], None]) -> None:
    """Serve until the process is interrupted; `ready` gets the address once the port is there."""
    listener = bound(port)
    gc.freeze()  # what is imported stays
    gc.disable()  # the application collects after each answer, never amid one
    config = uvicorn.Config(
        make_app(explorer),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
    )
    ready(f"http://{ADDRESS}:{listener.getsockname()[1]}/")
    uvicorn.Server(config).run(sockets=[listener])
