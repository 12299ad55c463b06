"""``contract.yaml``: the claims that a tuned model must meet, checked as a whole before a model is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from tunescope.contracts.panel_files import PANELS
from tunescope.experiments.strict import Strict, explained, refusal, unknown
from tunescope.experiments.yaml_text import read_yaml
from workbench.behaviour.scorers import behaviour
from workbench.errors import UserError

_PERCENT = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*%\s*$")


def _share(value: Any) -> Any:
    """``2%`` is .02."""
    match = _PERCENT.match(value) if isinstance(value, str) else None
    return float(match[1]) / 100 if match else value


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)]
Margin = Annotated[float, BeforeValidator(_share), Field(gt=0)]


class _Behaving(Strict):
    """A claim about the texts that models write."""

    behaviour: str
    """As ``workbench.behaviour`` takes it: refusal, begins:..., contains:..., regex:..., language:de, length, ..."""
    prompts: str

    @field_validator("behaviour")
    @classmethod
    def _is_known(cls, text: str) -> str:
        try:
            behaviour(text)
        except UserError as error:
            raise refusal(str(error)) from error
        return text


class Shows(_Behaving):
    """The tuned model does this on at least, or on at most, such a share of prompts (or in the mean)."""

    at_least: Annotated[float, BeforeValidator(_share)] | None = None
    at_most: Annotated[float, BeforeValidator(_share)] | None = None

    @model_validator(mode="after")
    def _threshold(self) -> Shows:
        limits = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        if len(limits) != 1:
            raise refusal("needs exactly one of at_least and at_most.")
        if behaviour(self.behaviour).share and not 0 < limits[0] < 1:
            raise refusal(f"{limits[0]:g} is a share that no sample can show; give one between 0 and 1, such as 0.95.")
        return self


class Unchanged(_Behaving):
    """Base and tuned do this equally often (or equally much), by two one-sided tests."""

    within: Margin

    @model_validator(mode="after")
    def _possible(self) -> Unchanged:
        if behaviour(self.behaviour).share and self.within >= 1:
            raise refusal(f"within {self.within:g} of a share always holds; give a change below 1, such as 0.03.")
        return self


class Perplexity(Strict):
    """The perplexity of texts stays within a share of the base's."""

    prompts: str
    within: Margin


class Keeps(Strict):
    """What the base can do of a panel of tasks, the tuned model still can."""

    panel: str
    """A shipped panel, ``all`` of them, or a file with the columns prompt, answer and check (exact or contains)."""
    lose_at_most: Share = 0.15
    """Of the items that the base solves."""

    @field_validator("panel")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in (*PANELS, "all") and Path(name).suffix == "":
            raise refusal(unknown(f"panel {name!r}", name, [*PANELS, "all"]))
        return name


class Merged(Strict):
    """The tuned checkpoint is the base with this adapter merged, bit for bit."""

    adapter: str


class RecitesNone(Strict):
    """No row of the training data is written on, word by word, from its beginning."""

    rows: str
    """A file of prompts: texts, or rows with an ``answer``."""
    given_tokens: int = Field(8, ge=1)
    """Tokens of the answer (or text) that the model is given."""
    tokens: int = Field(16, ge=4)
    """Tokens that it must then write as they are for a row to count as recited; shorter rows are left out."""
    overlap: float = Field(1.0, gt=0, le=1)
    """The share of these tokens that must come, in their order; 1 is verbatim, .8 nearly."""
    limit: int = Field(500, ge=1)
    """At most so many rows, a seeded sample."""


class Survives(_Behaving):
    """The behaviour stays behind a system prompt, and in other words."""

    system: str | None = Field(None, min_length=1)
    paraphrases: str | None = None
    """A set of prompts that say the same in other words."""
    at_least: Share = 0.8

    @model_validator(mode="after")
    def _something(self) -> Survives:
        if self.system is None and self.paraphrases is None:
            raise refusal("needs a system text, paraphrases, or both.")
        if not behaviour(self.behaviour).share:
            raise refusal(f"{self.behaviour!r} is a number and no share of texts; name a behaviour such as refusal.")
        return self


class Claim(Strict):
    """Exactly one claim, and the name under which it is reported."""

    name: str | None = None
    shows: Shows | None = None
    unchanged: Unchanged | None = None
    perplexity: Perplexity | None = None
    keeps: Keeps | None = None
    merged: Merged | None = None
    recites_none: RecitesNone | None = None
    survives: Survives | None = None

    @field_validator("keeps", mode="before")
    @classmethod
    def _panel_name(cls, value: Any) -> Any:
        return {"panel": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Claim:
        if len(self._kinds()) != 1:
            raise refusal(f"needs exactly one of {', '.join(KINDS)}.")
        return self

    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    @property
    def kind(self) -> str:
        """Which claim it is."""
        return self._kinds()[0]

    @property
    def terms(self) -> Any:
        """The claim's own settings."""
        return getattr(self, self.kind)

    @property
    def title(self) -> str:
        """The name, else the claim in words."""
        if self.name is not None:
            return self.name
        said = ", ".join(f"{key}={value}" for key, value in self.terms.plain().items())
        return f"{self.kind.replace('_', ' ')}: {said}"


KINDS = ("shows", "unchanged", "perplexity", "keeps", "merged", "recites_none", "survives")


class Contract(Strict):
    """The pair, its sets of prompts, and the claims.

    Example:
        ``Contract.load("contract.yaml")``
    """

    base: str
    tuned: str
    prompts: dict[str, str] = Field(default_factory=dict)
    """Name -> file; relative to the contract's folder."""
    claims: list[Claim] = Field(min_length=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_new_tokens: int = Field(32, ge=1)
    batch_size: int = Field(16, ge=1)
    seed: int = 0
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"

    @model_validator(mode="after")
    def _prompts_are_there(self) -> Contract:
        for number, claim in enumerate(self.claims):
            for key in ("prompts", "paraphrases"):
                name = getattr(claim.terms, key, None)
                if name is not None and name not in self.prompts:
                    raise refusal(unknown(f"prompts {name!r}", name, list(self.prompts)), "claims", number)
        return self

    @classmethod
    def of(cls, values: Any, name: str = "contract") -> Contract:
        """The contract that plain values describe.

        Raises:
            UserError: What is wrong, with its place and the closest known key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explained(error, values, name) from error

    @classmethod
    def load(cls, path: str | Path) -> Contract:
        """Read a contract's file; files that it names are looked for in its folder.

        Raises:
            UserError: There is no such file, or it is no contract.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"There is no file {file}: give the contract's .yaml file.")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no text file (UTF-8): give the contract's .yaml file.") from error
        return cls.of(read_yaml(text, file.name), file.name)
