"""Where a server of ours listens: whether the port is free, and how the address is written."""

from __future__ import annotations

import socket

from workbench.errors import UserError


def check_free(address: str, port: int) -> None:
    """Raise :class:`UserError` where something listens there already, or the address is none of this computer's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {address} cannot be used ({error.strerror}): give another --port, or stop what is "
                "there."
            ) from error


def in_url(address: str) -> str:
    """The address as a URL has it: an IPv6 one in brackets."""
    return f"[{address}]" if ":" in address else address
