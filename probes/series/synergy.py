"""Synergy of a merge: what the merged model answers beyond the mean of its parents, by model size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interventions.weightspace.merging import model_stock, ties, uniform_soup
from interventions.weightspace.task_vector import TaskVector
from probes.effects.panel import scored_line
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.series.answers import Answers, pair_members, updates_of
from probes.series.members import members_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_one
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, kw_only=True)
class MergeSynergy(ProbeResult):
    """A line per model size.

    ``table``: ``module`` names the base, ``parameters`` counts it; ``score`` is the synergy: right answers of the merge
    minus the mean of its parents', paired by prompt, with interval; ``control`` the same for the merged update under
    random signs, ``q`` of no synergy; ``merged``, ``parents`` (mean), ``best_parent`` and ``base`` are shares of right
    answers. ``larger``: the synergy of every further size minus that of the first, on the same prompts.
    """

    larger: pd.DataFrame

    title: ClassVar[str] = "Synergy of a merge"
    unit: ClassVar[str] = "right answers of the merge minus the parents' mean"

    def figure(self) -> go.Figure:
        """Synergy by size."""
        names = [
            f"{row['module']} ({row['parameters'] / 1e6:.3g} M parameters)" for row in self.table.to_dict("records")
        ]
        return labelled_points(self.table.assign(size=names), "size", title=self.title, unit=self.unit)

    def summary(self) -> str:
        """Each size's synergy."""
        lines = [
            f"{row['module']} {row['score']:+.2f} [{row['low']:.2f}, {row['high']:.2f}] (merge {row['merged']:.2f}, "
            f"parents {row['parents']:.2f}, the better {row['best_parent']:.2f}; control {row['control']:+.2f}, q = "
            f"{row['q']:.2g})"
            for row in self.table.to_dict("records")
        ]
        return f"Synergy in shares of right answers: {'; '.join(lines)}. Control: {self.control}."


@method(
    "merge-synergy",
    group="weights",
    question="Does a merge do more than its parents on average, and does that depend on the size of the model?",
    papers=(
        "Fine-tuning large language models for domain adaptation: Exploration of training strategies, scaling, model "
        "merging and synergistic capabilities",
    ),
    needs=Needs(columns=("answer",)),
    cost="a forward pass per parent, base, merge and control, at every size",
    example="--checkpoints ./on_1000",
)
def merge_synergy(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    sizes: Sequence[str] = (),
    rule: Literal["uniform", "stock", "ties"] = "uniform",
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> MergeSynergy:
    """Merge fine-tunes of one base and compare with the mean of the parents, at one size or several.

    Parents may be continued pre-training, SFT, DPO and ORPO of one domain (``iv.tune_series`` makes them). Synergy is
    more than interference that stays away: a merge that scores as its parents do on average has none.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer.
        checkpoints: The other fine-tunes: folders or hub ids.
        sizes: Folders of further sizes; each holds ``base`` and its fine-tunes as folders beside it.
        rule: How updates are merged: their mean, Model Stock, or TIES.
        seed: Of intervals and random signs.

    Returns:
        A :class:`MergeSynergy`.

    Raises:
        UserError: Fewer than two fine-tunes of a size, a folder without ``base``, prompts without answers or too few.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    folders = [_folder(Path(size)) for size in sizes]
    watch = progress or Silent()
    watch.start("merge synergy", 1 + len(folders))
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
    measured = [_Measured.of("first" if folders else "base", pair.base, vectors, rows, rule, batch_size, seed)]
    watch.advance()
    for base, parents in folders:
        model = load_one(base)
        vectors, identities = updates_of(model, members_of(model, None, [str(parent) for parent in parents], None))
        measured.append(_Measured.of(base.parent.name, model, vectors, rows, rule, batch_size, seed))
        models |= {f"{base.parent.name}: {name}": identity for name, identity in identities.items()}
        watch.advance()
    watch.finish()
    table = pd.DataFrame([merge.line(seed) for merge in measured])
    return MergeSynergy(
        table=with_q(table),
        control="the merged update under random signs, entry by entry",
        provenance=Provenance.of(
            "merge_synergy", models, rows, seed=seed, device=str(pair.base.device),
            forward_passes=sum(merge.passes for merge in measured),
        ),
        larger=_larger(measured, seed),
    )  # fmt: skip


def _folder(folder: Path) -> tuple[Path, list[Path]]:
    parents = sorted(path for path in folder.glob("*") if path.is_dir() and path.name != "base")
    if not (folder / "base").is_dir() or len(parents) < 2:
        raise UserError(
            f"{folder} is no folder of one size: it must hold a folder base and two or more fine-tunes beside it."
        )
    return folder / "base", parents


@dataclass(frozen=True)
class _Measured:
    """Right answers of one size, prompt by prompt."""

    name: str
    parameters: int
    merged: np.ndarray
    parents: np.ndarray
    shuffled: np.ndarray
    base: np.ndarray
    clusters: np.ndarray
    passes: int

    @classmethod
    def of(
        cls, name: str, base: AdaptedModel, vectors: dict[str, TaskVector], rows: Prompts, rule: str, batch_size: int,
        seed: int,
    ) -> _Measured:  # fmt: skip
        answers = Answers.of(base, rows, batch_size)
        task, members = answers.task(), list(vectors.values())
        rules = {"uniform": uniform_soup, "stock": model_stock, "ties": ties}
        merged = rules[rule](members)
        right = [
            answers.outcome(task, vector).right.astype(float) for vector in (merged, merged.sign_shuffled(seed), None)
        ]
        parents = np.array([answers.outcome(task, member).right for member in members], dtype=float)
        assert task.clusters is not None
        count = sum(parameter.numel() for parameter in base.hf.parameters())
        return cls(name, count, right[0], parents, right[1], right[2], task.clusters, answers.passes)

    @property
    def synergy(self) -> np.ndarray:
        return np.asarray(self.merged - self.parents.mean(0))

    def line(self, seed: int) -> dict[str, Any]:
        scored = scored_line("", self.name, self.synergy, 0.0, self.clusters, seed, of="changes")
        columns = {name: scored[name] for name in ("score", "low", "high", "p", "n")}
        return {
            "module": self.name, "parameters": self.parameters, **columns,
            "control": float((self.shuffled - self.parents.mean(0)).mean()), "merged": float(self.merged.mean()),
            "parents": float(self.parents.mean()), "best_parent": float(self.parents.mean(1).max()),
            "base": float(self.base.mean()),
        }  # fmt: skip


def _larger(measured: Sequence[_Measured], seed: int) -> pd.DataFrame:
    first, *others = measured
    names = ["module", "score", "low", "high", "p", "n"]
    lines = []
    for other in others:
        if len(other.synergy) != len(first.synergy) or (other.clusters != first.clusters).any():
            continue  # another tokenizer reads the prompts in another order: no pairs
        scored = scored_line("", other.name, other.synergy - first.synergy, 0.0, first.clusters, seed, of="changes")
        lines.append({"module": other.name, **{name: scored[name] for name in names[1:]}})
    return pd.DataFrame(lines, columns=names)
