"""A session with the app's server over its own protocol, without a browser: open a page, read what it draws."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

_STILL = 0.4
"""Seconds without a message after which a page is whole: a script may begin again by itself."""


class Session:
    """One tab: ``with Session(address) as tab: messages = tab.page("heads", "run=lab")``."""

    def __init__(self, address: str) -> None:
        self._url = f"{address.replace('http://', 'ws://')}/_stcore/stream"
        self._origin = address
        self._opened = ExitStack()
        self._link: ClientConnection | None = None

    def __enter__(self) -> Session:
        link: Any = connect(self._url, subprotocols=[Subprotocol("streamlit")], origin=Origin(self._origin),
                            max_size=None)  # fmt: skip
        self._link = self._opened.enter_context(link)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def page(self, name: str, query: str = "") -> str:
        """Everything that the server sends of a page until it is drawn, as text."""
        assert self._link is not None
        asked = BackMsg()
        asked.rerun_script.query_string = query
        asked.rerun_script.page_name = name
        self._link.send(asked.SerializeToString())
        seen: list[str] = []
        begun = ended = 0
        while True:
            whole = ended > 0 and begun == ended
            try:
                message = ForwardMsg.FromString(self._link.recv(timeout=_STILL if whole else 120))  # type: ignore[arg-type]
            except TimeoutError:
                assert whole, "the page was not drawn within two minutes"
                return "\n".join(seen)
            seen.append(str(message))
            kind = message.WhichOneof("type")
            begun, ended = begun + (kind == "new_session"), ended + (kind == "script_finished")
