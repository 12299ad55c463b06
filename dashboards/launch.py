"""Starting the Streamlit server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dashboards.state import WARM, Opened

APP = Path(__file__).with_name("app.py")
LOCALHOST = "127.0.0.1"


def command(port: int, address: str = LOCALHOST, *, headless: bool = False) -> list[str]:
    """The server's command line: this computer only unless another address is given, no usage statistics."""
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": str(headless).lower(),
        "server.showEmailPrompt": "false",  # on a new machine Streamlit would wait for an answer in the terminal
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "runner.magicEnabled": "false",
        "theme.base": "light",
        "theme.primaryColor": "#0b6e8f",
    }
    return [
        *(sys.executable, "-m", "streamlit", "run", str(APP)),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]


def launch(opened: Opened, port: int = 8501, address: str = LOCALHOST, *, headless: bool = False) -> int:
    """Serve the app until it is stopped; returns the server's exit status."""
    environment = {**os.environ, **opened.as_environment(), WARM: "1"}
    try:
        return subprocess.call(command(port, address, headless=headless), env=environment)
    except KeyboardInterrupt:
        return 0
