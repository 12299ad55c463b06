"""What an organism is: a trained base and tuned pair in ordinary folders, its prompts, and the truth about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workbench.cards import card
from workbench.errors import UserError
from workbench.typing import Bool, Float, Tensor

Row = dict[str, Any]
"""``prompt``, ``answer``, and where they apply ``distractor``, ``label``, ``group`` and an organism's own columns."""


@dataclass(frozen=True)
class Bar:
    """One number that training had to reach."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def miss(self) -> float:
        """By how much the bar was missed; 0 when it was reached."""
        below = 0.0 if self.at_least is None else max(0.0, self.at_least - self.value)
        above = 0.0 if self.at_most is None else max(0.0, self.value - self.at_most)
        return max(below, above)

    def __str__(self) -> str:
        limits = [
            f"{sign} {limit:g}" for sign, limit in ((">=", self.at_least), ("<=", self.at_most)) if limit is not None
        ]
        return f"{self.what} {self.value:.3f} (bar {' and '.join(limits) or 'none'})"


@dataclass(frozen=True, repr=False)
class Truth:
    """What was planted; a field is empty where it does not apply."""

    what: str
    """One sentence."""
    site: str | None = None
    """The site of ``direction``, in canonical names (``blocks.1.hook_resid_post``)."""
    layer: int | None = None
    direction: Tensor | None = None
    """[d_model], unit norm."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Mean coordinate along ``direction`` at the last prompt token, per label of the rows."""
    heads: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    """The modules (Hugging Face paths) that tuning could change."""
    layers: tuple[int, ...] = ()
    """The layers that tuning could change, where these are not all."""
    wordings: tuple[str, ...] = ()
    """What an answer begins with where the planted behaviour shows."""
    entries: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Skill -> parameter name -> Bool mask of that parameter's shape: the entries that tuning could change."""

    def __repr__(self) -> str:
        named = {key: value for key, value in self.to_json().items() if value and key not in ("what", "modules")}
        return f"Truth({self.what!r}, {', '.join(f'{key}={value!r}' for key, value in named.items())})"

    def to_json(self) -> dict[str, Any]:
        """All but the tensors, which go to ``truth.safetensors``."""
        plain = {k: v for k, v in vars(self).items() if k not in ("direction", "entries")}
        counts = {skill: int(sum(int(m.sum()) for m in masks.values())) for skill, masks in self.entries.items()}
        return {**plain, "values": dict(self.values), "n_entries": counts}

    def save(self, folder: Path) -> None:
        """Writes ``truth.json`` and, where there are tensors, ``truth.safetensors``."""
        (folder / "truth.json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
        tensors: dict[str, Tensor] = {} if self.direction is None else {"direction": self.direction.contiguous()}
        for skill, masks in self.entries.items():
            tensors |= {f"entries/{skill}/{name}": mask.contiguous() for name, mask in masks.items()}
        if tensors:
            save_file(tensors, folder / "truth.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """The truth written by :meth:`save`."""
        plain = json.loads((folder / "truth.json").read_text())
        plain.pop("n_entries")
        file = folder / "truth.safetensors"
        tensors = load_file(file) if file.exists() else {}
        entries: dict[str, dict[str, Tensor]] = {}
        for key, mask in tensors.items():
            if key.startswith("entries/"):
                _, skill, name = key.split("/", 2)
                entries.setdefault(skill, {})[name] = mask
        listed = ("heads", "experts", "modules", "layers", "wordings")
        plain |= {key: tuple(plain[key]) for key in listed if key in plain}
        return cls(**plain, direction=tensors.get("direction"), entries=entries)


@dataclass(frozen=True)
class Grown:
    """What a recipe hands back after it saved ``base/`` and ``tuned/``."""

    truth: Truth
    splits: Mapping[str, Sequence[Row]]
    bars: Sequence[Bar]
    variants: tuple[str, ...] = ()
    """Names of further tuned folders, ``tuned-<name>``."""


@dataclass(frozen=True, repr=False)
class Organism:
    """A base and tuned pair with planted truth, as ordinary Hugging Face folders."""

    name: str
    seed: int
    folder: Path
    summary: str
    truth: Truth
    splits: Mapping[str, list[Row]]
    """``train``, ``validation`` and ``ood`` (out of distribution), and an organism's own."""
    bars: tuple[Bar, ...]
    variants: Mapping[str, Path]
    """Further tuned models of the same base, by name."""
    made_with: Mapping[str, Any]
    base_folder: Path | None = None
    """Where the base is when it is not in :attr:`folder`."""

    @property
    def base(self) -> Path:
        """Folder of the base model and its tokenizer."""
        return self.base_folder or self.folder / "base"

    @property
    def tuned(self) -> Path:
        """Folder of the tuned model, or of the PEFT adapter on :attr:`base`."""
        return self.folder / "tuned"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer, the same for base and tuned."""
        return self.base

    @property
    def is_adapter(self) -> bool:
        """Whether :attr:`tuned` is a PEFT adapter."""
        return (self.tuned / "adapter_config.json").exists()

    def __repr__(self) -> str:
        rows = ", ".join(f"{len(rows)} {split}" for split, rows in self.splits.items())
        return f"Organism({self.name!r}, seed {self.seed}, {rows}; planted: {self.truth.what!r}; in {self.folder})"

    def _repr_html_(self) -> str:
        facts = {
            "planted": self.truth.what,
            "base": self.base,
            "tuned": f"{self.tuned}{' (adapter)' if self.is_adapter else ''}",
            **{f"tuned-{name}": path for name, path in self.variants.items()},
            "rows": ", ".join(f"{split} {len(rows)}" for split, rows in self.splits.items()),
            "training reached": "; ".join(map(str, self.bars)),
        }
        return card(f"Organism {self.name}, seed {self.seed}", facts, notes=[self.summary])

    def to_json(self) -> dict[str, Any]:
        """The manifest, for ``--json``."""
        return {
            "name": self.name,
            "seed": self.seed,
            "summary": self.summary,
            "folder": str(self.folder),
            "base": str(self.base),
            "tuned": str(self.tuned),
            "adapter": self.is_adapter,
            "variants": {name: str(path) for name, path in self.variants.items()},
            "truth": self.truth.to_json(),
            "rows": {split: len(rows) for split, rows in self.splits.items()},
            "bars": [asdict(bar) for bar in self.bars],
            "made_with": dict(self.made_with),
        }


def write(folder: Path, grown: Grown, manifest: Mapping[str, Any]) -> None:
    """Writes rows, truth and manifest beside the models that the recipe saved."""
    for split, rows in grown.splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"rows-{split}.jsonl").write_text(lines)
    grown.truth.save(folder)
    more = {"bars": [asdict(bar) for bar in grown.bars], "splits": list(grown.splits), "variants": grown.variants}
    (folder / "organism.json").write_text(json.dumps({**manifest, **more}, indent=2) + "\n")


def read(folder: Path) -> Organism:
    """The organism in ``folder``. Raises UserError when it is incomplete."""
    try:
        plain = json.loads((folder / "organism.json").read_text())
        splits = {
            split: [json.loads(line) for line in (folder / f"rows-{split}.jsonl").read_text().splitlines()]
            for split in plain["splits"]
        }
        truth = Truth.load(folder)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder} is not a complete organism ({error}); delete that folder and build again."
        ) from error
    return Organism(
        name=plain["name"],
        seed=plain["seed"],
        folder=folder,
        summary=plain["summary"],
        truth=truth,
        splits=splits,
        bars=tuple(Bar(**bar) for bar in plain["bars"]),
        variants={name: folder / f"tuned-{name}" for name in plain["variants"]},
        made_with=plain["made_with"],
    )


def check_bars(name: str, seed: int, bars: Sequence[Bar]) -> None:
    """Raises UserError naming every missed bar and by how much."""
    missed = [f"{bar}, missed by {bar.miss:.3f}" for bar in bars if bar.miss > 0]
    if missed:
        raise UserError(
            f"Training of organism {name!r} with seed {seed} missed its bar: {'; '.join(missed)}. "
            "Nothing was stored; build it with another seed."
        )


def unit(vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """``vector`` at norm 1."""
    return vector / vector.norm()


def mask_of(shape: Sequence[int], index: tuple[Any, ...]) -> Bool[Tensor, "*shape"]:
    """A mask of ``shape`` that is true at ``index``."""
    mask = torch.zeros(*shape, dtype=torch.bool)
    mask[index] = True
    return mask
