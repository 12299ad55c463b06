"""What a page of the app may load and run: this server's own files, and nothing from elsewhere.

Streamlit sends no policy of its own. Two allowances are its front end's: its styles are written into the page, and its
table and chart libraries start workers from blobs and compile expressions.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def policy(index: str) -> str:
    """The header's value.

    Args:
        index: The HTML of Streamlit's page; the scripts written into it are allowed by their hashes.

    Returns:
        Directives, joined by semicolons.

    Example:
        ``policy("<script>window.ready = true</script>")`` allows that script and no other that is written in a page.
    """
    hashes = (b64encode(sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(index))
    scripts = " ".join(f"'sha256-{hash_}'" for hash_ in hashes)
    directives = {
        "default-src": "'self'",
        "script-src": f"'self' {scripts} 'wasm-unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "worker-src": "'self' blob:",
        "frame-src": "'none'",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def of_streamlit() -> str:
    """The policy for the installed Streamlit."""
    return policy((Path(streamlit.__file__).parent / "static" / "index.html").read_text(encoding="utf-8"))


class PolicyHeaders:
    """ASGI middleware that adds the policy, and tells browsers to guess no types and send no referrer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [
            (b"content-security-policy", of_streamlit().encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the answer's head gets the headers."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in self._headers}
                others = [pair for pair in message.get("headers", []) if pair[0].lower() not in names]
                message = {**message, "headers": [*others, *self._headers]}
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
