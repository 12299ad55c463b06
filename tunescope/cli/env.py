"""``tunescope env``: versions, platform, devices and cache folders, for a bug report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "safetensors", "transformer-lens", "nnsight", "numpy", "pandas",
    "pyarrow", "scipy", "scikit-learn", "plotly", "streamlit", "typer", "pydantic", "gguf", "ray",
)  # fmt: skip
_SECONDS = 10


def env(as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False) -> None:
    """Show what a bug report needs: versions, platform, devices, cache folders. Imports no torch.

    Example, offline:  tunescope env
    """
    from tunescope.cli.output import emit

    emit(environment(), as_json, title="Environment")


def environment() -> dict[str, Any]:
    """Versions (None: not installed), platform, processors, GPUs, and the folders that are written to."""
    from workbench import __version__
    from workbench.organisms.cache import home
    from workbench.runs.places import default_home

    return {
        "tunescope": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "memory (GB)": _memory(),
        "gpus": gpus(),
        "torch build": _torch_build(),
        **{name: _version(name) for name in LIBRARIES},
        "runs": _place(default_home()),
        "organisms": _place(home()),
        "Hugging Face cache": _place(_hub_cache()),
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    }


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU, or Apple's; empty where there is none."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["Apple silicon (mps)"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi failed ({type(error).__name__})"]
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch_build() -> str:
    """For what the installed torch was built, from its version alone: ``+cpu``, ``+cu128``."""
    version = _version("torch")
    if version is None:
        return "not installed"
    label = version.partition("+")[2]
    if label:
        return "CPU only" if label == "cpu" else label
    return "CUDA, as PyPI's build is" if sys.platform == "linux" else "PyPI's build"


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def _hub_cache() -> Path:
    """Where huggingface_hub keeps models, by its own rules."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _place(folder: Path) -> str:
    return f"{folder.absolute()}{'' if folder.is_dir() else ' (not there yet)'}"
