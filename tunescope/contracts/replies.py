"""What a contract's claims read: the pair, prompts, and greedy replies made once for all claims."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tunescope.contracts.panel_files import panel
from tunescope.contracts.schema import Contract
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.scorers import behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.models.sources import describe
from workbench.progress import Progress
from workbench.prompts.collection import Prompts


@dataclass
class Material:
    """The contract's files and models; models are loaded when the first claim needs them."""

    contract: Contract
    folder: Path
    """Where the contract lies; its files are looked for there."""
    progress: Progress | None = None
    _replies: dict[tuple[str, str], list[Reply]] = field(default_factory=dict)

    @cached_property
    def pair(self) -> ModelPair:
        """Both models."""
        contract = self.contract
        return load_pair(
            self.place(contract.base), self.place(contract.tuned), device=contract.device, dtype=contract.dtype
        )

    @property
    def work(self) -> Work:
        """The batch size, and who hears of progress."""
        return Work(self.contract.batch_size, self.progress)

    def place(self, name: str) -> str:
        """A file or folder beside the contract where it is there, else the name as it is (a hub id)."""
        beside = self.folder / Path(name).expanduser()
        return str(beside) if beside.exists() else name

    def check_files(self) -> None:
        """Read every file that the contract or a claim names, before a model is loaded.

        Raises:
            UserError: A file or folder is missing, or holds no row.
        """
        _ = self.prompts
        for claim in self.contract.claims:
            if claim.kind == "recites_none":
                self.rows(claim.terms.rows)
            elif claim.kind == "keeps":
                panel(claim.terms.panel, self.folder)
            elif claim.kind == "merged" and not describe(self.place(claim.terms.adapter)).is_adapter:
                raise UserError(f"merged: {claim.terms.adapter} is no PEFT adapter; give the folder with "
                                "adapter_config.json.")  # fmt: skip

    @cached_property
    def prompts(self) -> dict[str, Prompts]:
        """Every set of prompts that the contract names.

        Raises:
            UserError: A file is missing or holds no row.
        """
        return {name: self._read(file) for name, file in self.contract.prompts.items()}

    def _read(self, file: str) -> Prompts:
        path = self.folder / Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"There is no file {path}: give a file of prompts.")
        rows = Prompts.load(path)
        if not len(rows):
            raise UserError(f"{path} holds no prompts; give at least one.")
        return rows

    def rows(self, file: str) -> Prompts:
        """The rows of a file that a claim names itself."""
        return self._read(file)

    def replies(self, role: str, rows: Prompts) -> list[Reply]:
        """Greedy replies of ``base`` or ``tuned``."""
        key = (role, rows.hash)
        if key not in self._replies:
            subject = Subject(role, self.pair.models[role])
            decoding = Decoding(self.contract.max_new_tokens)
            self._replies[key] = [row[0] for row in generate_replies(subject, rows, decoding, self.work)]
        return self._replies[key]

    def scores(self, role: str, rows: Prompts, what: str) -> np.ndarray:
        """How much of a behaviour each reply [prompt] shows."""
        score = behaviour(what)
        return np.array([score(reply.text, row) for reply, row in zip(self.replies(role, rows), rows, strict=True)])

    def behind(self, system: str, rows: Prompts) -> Prompts:
        """The rows behind a system turn; of a model without chat template, behind the text itself."""
        if self.pair.tuned.has_chat_template:
            return rows.turned(system=system)
        if any(row.prompt is None for row in rows):
            raise UserError("Only texts can stand behind a system text where the model has no chat template.")
        return Prompts([replace(row, prompt=f"{system}\n\n{row.prompt}") for row in rows])
