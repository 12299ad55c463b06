"""What a person asks for when a new pair is recorded, read and checked before a model is loaded."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboards import models
from workbench import runs
from workbench.errors import UserError
from workbench.runs.places import inside

if TYPE_CHECKING:
    from workbench.progress import Progress
    from workbench.prompts import Prompts

ENDINGS = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
SITES = ("resid_post", "resid_mid", "resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "router")
POSITIONS = ("last", "all", "prompt")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class RecordRequest:
    """A recording to be made."""

    base: str
    tuned: str
    sites: tuple[str, ...]
    positions: str
    name: str
    device: str = "auto"
    new_tokens: int = 0

    def folder(self) -> Path:
        """Where the run will lie: in the home of the runs, nowhere else. Raises :class:`UserError`."""
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} is no name of a run: use letters, digits, dots, dashes and underscores, and no folders."
            )
        return inside(runs.default_home(), self.name)

    def record(self, prompts: Prompts, progress: Progress) -> Path:
        """Load both models, record them, write the run; returns its folder."""
        models.warm().wait("models")
        from workbench.recording.job import record_run

        base, tuned = models.places(self.base, self.tuned)
        made = record_run(
            base, tuned, prompts, sites=self.sites, positions=self.positions, out=self.folder(), device=self.device,
            new_tokens=self.new_tokens, progress=progress,
        )  # fmt: skip
        return made.run.path

    def check(self) -> None:
        """Raise :class:`UserError` for what can be known to be wrong without loading a model."""
        if not self.base.strip():
            models.places(self.base, self.tuned)
        if not self.sites:
            raise UserError("Name at least one site to record, such as resid_post.")
        self.folder()

    def command(self) -> str:
        """The same on the command line."""
        values: dict[str, Any] = {"--sites": ",".join(self.sites), "--positions": self.positions}
        options = " ".join(f"{name} {value}" for name, value in values.items())
        return f"tunescope record {self.base} {self.tuned} --prompts prompts.jsonl {options} --out runs/{self.name}"


def pasted(text: str) -> Prompts:
    """Prompts of a text: rows of JSON when its first line begins with a brace, else one prompt a line."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise UserError("There are no prompts: paste at least one line, or upload a file.")
    return _read(text.encode(), "jsonl" if first.lstrip().startswith("{") else "txt")


def uploaded(name: str, content: bytes) -> Prompts:
    """Prompts of a file that a browser sent; its name only says what kind it is."""
    ending = name.rpartition(".")[2].lower()
    if ending not in ENDINGS:
        raise UserError(f"A file that ends in .{ending[:20]} cannot be read; give one of {', '.join(ENDINGS)}.")
    return _read(content, ending)


def _read(content: bytes, ending: str) -> Prompts:
    from workbench.prompts import Prompts

    with tempfile.TemporaryDirectory(prefix="tunescope-prompts-") as folder:
        path = Path(folder) / f"prompts.{ending}"
        path.write_bytes(content)
        return Prompts.load(path)
