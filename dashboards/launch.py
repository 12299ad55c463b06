"""Starting the Streamlit server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from dashboards.state import WARM, Opened
from workbench.local_address import check_free, in_url

APP = Path(__file__).with_name("serve.py")
LOCALHOST = "127.0.0.1"


def command(port: int, address: str = LOCALHOST, *, headless: bool = False) -> list[str]:
    """The server's command line: this computer only unless another address is given, no usage statistics."""
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": str(headless).lower(),
        "server.showEmailPrompt": "false",  # on a new machine Streamlit would wait for an answer in the terminal
        "server.fileWatcherType": "none",
        # given here, so that a .streamlit/config.toml of the folder one stands in decides none of them
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "server.enableAgentApi": "false",
        "client.showErrorDetails": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": "true",  # and with it an offer, laid over the page, to install files for agents
        "runner.magicEnabled": "false",
        "theme.base": "light",
        "theme.primaryColor": "#0b6e8f",
    }
    return [
        *(sys.executable, "-m", "streamlit", "run", str(APP)),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
        *(part for host in _hosts(address) for part in ("--server.allowedHosts", host)),
    ]


def _hosts(address: str) -> list[str]:
    """The names under which a browser may ask: another site's name that leads here (DNS rebinding) is refused.

    An address for all networks may be asked for under any of this machine's names.
    """
    if address in ("0.0.0.0", "::", ""):
        return ["*"]
    return list(dict.fromkeys([address, LOCALHOST, "localhost"]))


def warning_of(address: str) -> str | None:
    """What a person should know who lets others connect; None on this computer alone."""
    if address in (LOCALHOST, "localhost", "::1"):
        return None
    return (
        f"Warning: the dashboard has no password, and whoever reaches {address} can read all runs and load any model "
        "on this computer."
    )


def launch(opened: Opened, port: int = 8501, address: str = LOCALHOST, *, headless: bool = False) -> int:
    """Serve the app until it is stopped; returns the server's exit status.

    Raises:
        UserError: The port is taken, or the address is none of this computer's.
    """
    check_free(address, port)
    environment = {**os.environ, **opened.as_environment(), WARM: "1"}
    if (warning := warning_of(address)) is not None:
        sys.stderr.write(f"{warning}\n")
    before = signal.signal(signal.SIGTERM, _stopped)  # before there is a server that could be left behind
    server = None
    try:
        server = subprocess.Popen(command(port, address, headless=headless), env=environment)
        sys.stdout.write(f"Tunescope is at http://{in_url(address)}:{port} (Ctrl+C stops it)\n")
        sys.stdout.flush()
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        if server is not None:
            _end(server)


def _stopped(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[bytes]) -> None:
    """Leave no server behind: asked first, then killed."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
