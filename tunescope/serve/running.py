"""Starting the server: the port, the token, and what is printed."""

from __future__ import annotations

import secrets
import sys

from tunescope.serve.api import application
from tunescope.serve.engine import Engine
from workbench.local_address import in_url

LOCAL = ("127.0.0.1", "localhost", "::1")


def run(engine: Engine, address: str, port: int, token: str | None, *, made: bool, hosts: list[str]) -> None:
    """Serve until Ctrl-C; requests under way are finished first.

    Args:
        engine: What answers.
        address: Where to listen.
        port: The port.
        token: The clients' key.
        made: Make a new key, and print it.
        hosts: Further names that requests may be addressed to.
    """
    import uvicorn

    key = secrets.token_urlsafe(24) if made else token
    token_sentence = "no token is asked for" if key is None else f"token {key}" if made else "the token that was given"
    shown = in_url(address)
    sys.stderr.write(
        f"Serving {', '.join(engine.models())}\nat http://{shown}:{port}/v1, {token_sentence}. Ctrl-C ends it.\n"
    )
    app = application(engine, key, [*LOCAL, shown, address, *hosts])
    uvicorn.run(app, host=address, port=port, log_level="warning", timeout_graceful_shutdown=30)
