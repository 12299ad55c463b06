"""A contract checked: every claim's finding, and the verdict on the whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunescope.contracts.claims import DECIDERS
from tunescope.contracts.decisions import FAILS, HOLDS, UNDECIDED, Finding, Verdict
from tunescope.contracts.replies import Material
from tunescope.contracts.schema import Claim, Contract
from workbench.progress import Progress

EXIT = {HOLDS: 0, FAILS: 1, UNDECIDED: 3}
"""The exit code of each verdict."""


@dataclass(frozen=True)
class Checked:
    """All findings of a contract, in its order."""

    contract: Contract
    findings: tuple[tuple[Claim, Finding], ...]

    @property
    def verdict(self) -> Verdict:
        """*fails* where a claim fails, else *not enough evidence* where one is undecided, else *holds*."""
        seen = {finding.verdict for _, finding in self.findings}
        return FAILS if FAILS in seen else UNDECIDED if UNDECIDED in seen else HOLDS

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return EXIT[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        claims = [{"claim": claim.title, "kind": claim.kind, **asdict(finding)} for claim, finding in self.findings]
        return {"verdict": self.verdict, "confidence": self.contract.confidence, "claims": claims}


def check(
    contract: Contract | str | Path, *, folder: str | Path | None = None, progress: Progress | None = None
) -> Checked:
    """Check every claim of a contract.

    Args:
        contract: A contract, or its file.
        folder: Where its files are looked for; default: the file's folder, else the working one.

    Returns:
        Findings with verdict, interval, n, and the n that would decide what is undecided.

    Raises:
        UserError: A file is missing, or a claim cannot be put to this pair.

    Example:
        ``check("contract.yaml").verdict``
    """
    if isinstance(contract, str | Path):
        folder = Path(contract).parent if folder is None else folder
        contract = Contract.load(contract)
    material = Material(contract, Path(folder or "."), progress)
    material.check_files()
    findings = tuple((claim, DECIDERS[claim.kind](claim.terms, material)) for claim in contract.claims)
    return Checked(contract, findings)
