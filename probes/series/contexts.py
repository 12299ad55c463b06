"""context_updates: adapters made from contexts, beside the contexts themselves in the prompt, and beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from interventions.weightspace.task_vector import TaskVector
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.series.answers import pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.typing import Float


@dataclass(frozen=True, kw_only=True)
class ContextUpdates(ProbeResult):
    """One row per adapter that was made from a context.

    ``score``: share of what the context does to the next word that the adapter does instead of it:
    1 - KL(base with the context || base + update) / KL(base with the context || base), the mean over prompts (1: the
    adapter is the context; 0: no nearer than the bare base; below: farther away); ``control``: the same against the
    contexts of the other adapters, ``q`` of the difference. ``effect``: KL of the context alone (nats); ``norm``: of
    the update; ``cluster``: number of its cluster of updates.
    ``likeness``: cosine of every two updates, beside the cosine of what their contexts do to the next word's
    log-probabilities.
    """

    likeness: pd.DataFrame

    title: ClassVar[str] = "Adapters beside their contexts"
    unit: ClassVar[str] = "share of the context's effect"

    def summary(self) -> str:
        table, likeness = self.table, self.likeness
        return (
            f"{len(table)} adapters in {table['cluster'].nunique()} clusters; they do {table['score'].mean():.2f} of "
            f"what their contexts do, {table['control'].mean():.2f} of what other contexts do; cosine of two updates "
            f"{likeness['updates'].mean():.2f}, of two contexts' effects {likeness['contexts'].mean():.2f}. "
            f"Control: {self.control}."
        )


@method(
    "context-updates",
    group="weights",
    question="Does an adapter made from a context do what the context does, and which contexts make the same update?",
    papers=(
        "Generative Adapter: Contextualizing Language Models in Parameters with A Single Forward Pass",
        "StreamAdapter: Efficient Test Time Adaptation from Contextual Streams",
    ),
    cost="two forward passes per prompt and adapter",
    example="--contexts ant,bee --checkpoints ./adapter",
)
def context_updates(
    pair: Any,
    prompts: Any,
    *,
    contexts: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    threshold: Annotated[float, Within(-1, 1)] = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> ContextUpdates:
    """Compare base + update with the base that reads the context before the prompt, for every adapter.

    Args:
        pair: Base and one adapter.
        prompts: Prompts without their context.
        contexts: The text that each adapter was made from, in the order of ``checkpoints``, the pair's last (texts with
            commas: from Python or an experiment file).
        checkpoints: The other adapters, each made from its context.
        threshold: Cosine from which two updates are in one cluster (single linkage).
        seed: Of the intervals.

    Raises:
        UserError: Fewer than two adapters, or another number of contexts.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
    if len(contexts) != len(vectors):
        raise UserError(
            f"There are {len(contexts)} contexts for {len(vectors)} adapters: give one each, in their order."
        )
    watch = progress or Silent()
    watch.start("contexts", 2 * len(vectors))
    bare = _next_words(pair.base, rows, None)
    read, made = [], []
    for context, vector in zip(contexts, vectors.values(), strict=True):
        read.append(_next_words(pair.base, before(rows, context), None))
        watch.advance()
        made.append(_next_words(pair.base, rows, vector))
        watch.advance()
    watch.finish()
    likeness = _likeness(vectors, [effect - bare for effect in read])
    clusters = _clusters(list(vectors), likeness, threshold)
    table = []
    for place, (name, vector) in enumerate(vectors.items()):
        shares = np.stack([_share(made[place], effect, bare) for effect in read])
        own, others = shares[place], np.delete(shares, place, 0).mean(0)
        table.append({
            "module": name, **beside_control(own, others, rows.clusters, seed=seed),
            "effect": float(_kl(read[place], bare).mean()), "norm": vector.norm(), "cluster": clusters[name],
            "n": len(own),
        })  # fmt: skip
    return ContextUpdates(
        table=with_q(table, keep_p=False),
        control="the contexts of the other adapters",
        provenance=Provenance.of(
            "context_updates", models, rows, seed=seed, device=str(pair.base.device),
            forward_passes=1 + 2 * len(vectors),
        ),
        likeness=likeness,
    )  # fmt: skip


def before(rows: Prompts, context: str) -> Prompts:
    """The prompts with the context in front: of a chat, of its first turn."""
    made = []
    for row in rows:
        values = row.as_dict()
        if row.messages is not None:
            turns = [dict(turn) for turn in row.messages]
            turns[0]["content"] = f"{context} {turns[0]['content']}"
            values["messages"] = turns
        else:
            values["prompt"] = f"{context} {row.prompt}"
        made.append(values)
    return Prompts.of(made)


def _next_words(base: AdaptedModel, rows: Prompts, vector: TaskVector | None) -> Float[np.ndarray, "row vocab"]:
    encoded = base.encode(rows)
    if vector is None:
        logits = base.forward(encoded, logits="last")
    else:
        with vector.graft(base).entered(base):
            logits = base.forward(encoded, logits="last")
    assert logits is not None
    return logits[:, -1].float().log_softmax(-1).cpu().numpy()


def _kl(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray((np.exp(first) * (first - other)).sum(-1))


def _share(made: np.ndarray, read: np.ndarray, bare: np.ndarray) -> np.ndarray:
    return 1 - _kl(read, made) / np.maximum(_kl(read, bare), 1e-9)


def _likeness(vectors: dict[str, TaskVector], effects: list[np.ndarray]) -> pd.DataFrame:
    names, rows = list(vectors), []
    flat = [effect.reshape(-1).astype(np.float64) for effect in effects]
    for place, first in enumerate(names):
        for after in range(place + 1, len(names)):
            size = np.linalg.norm(flat[place]) * np.linalg.norm(flat[after])
            rows.append({
                "first": first, "second": names[after], "updates": vectors[first].cosine(vectors[names[after]]),
                "contexts": float(flat[place] @ flat[after] / size) if size else 0.0,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _clusters(names: list[str], likeness: pd.DataFrame, threshold: float) -> dict[str, int]:
    """Single linkage: updates whose cosine reaches the threshold are together."""
    number = {name: place for place, name in enumerate(names)}
    for _, row in likeness[likeness["updates"] >= threshold].iterrows():
        low, high = sorted((number[row["first"]], number[row["second"]]))
        number = {name: low if value == high else value for name, value in number.items()}
    order = {value: place for place, value in enumerate(dict.fromkeys(number.values()))}
    return {name: order[value] for name, value in number.items()}
