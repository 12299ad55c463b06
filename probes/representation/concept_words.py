"""Whether a set of concept words reads a label better than as many random words: the control every such set needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.effects.panel import CHANGE, EffectPanel, scored_line, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.representation.classifier import FEWEST, classes_of, dealt_folds, held_out_right
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import token_ids
from workbench.recording.record_pair import record
from workbench.typing import Float, Tensor


@method(
    "concept-words",
    group="representation",
    question="Do these concept words describe what the states hold, or would random words do as well?",
    papers=("Learning Concise and Descriptive Attributes for Visual Recognition",),
    needs=Needs(columns=("label",), per_class=FEWEST),
    cost="one forward pass of each model; a probe per set of words",
    example="--words fur,claws,wings,wheels",
)
def concept_words(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    words: Sequence[str] = (),
    sizes: Sequence[int] = (),
    labels: str = "label",
    layer: int | float = -1,
    draws: int = 20,
    folds: int = 5,
    ridge: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,  # noqa: ARG001 (every method takes one)
) -> EffectPanel:
    """Accuracy of a linear probe that sees only how far a state points to each of some words (Yan et al. 2023).

    The concept bottleneck: states are projected on the words' output embeddings, and the label is read from those
    numbers alone, held out. In bulk random words do as well, since any hundred directions keep most of a state: so
    every set of concepts (or of dictionary labels) has to beat random words of its own size. ``sizes`` takes the words
    in their order, so that the concise set shows, where concepts beat chance most.

    Args:
        pair: Both models.
        prompts: Labelled rows.
        words: The concepts, the most telling first.
        sizes: How many of them are used; by default all.
        labels: The column of the label.
        layer: Whose residual is projected: an index (-1: the last) or a fraction of the depth.
        draws: Random sets of words of the same size.
        folds: Folds of the probe.
        ridge: Strength of its L2 penalty.
        seed: Of folds, random words and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "k words"; ``control`` the mean accuracy of random words.

    Raises:
        UserError: No words, a size beyond them, or labels that cannot be probed.
    """
    check_pair(pair, prompts)
    if not words:
        raise UserError("There are no concept words: give some, the most telling first.")
    counts = sorted(set(sizes)) or [len(words)]
    if counts[-1] > len(words):
        raise UserError(f"{counts[-1]} of {len(words)} words were asked for: give more words, or smaller sizes.")
    rows = Prompts.of(prompts)
    y, _ = classes_of(column_of(rows, labels))
    dealt = dealt_folds(folds, rows.clusters, y, seed)
    site = pair.tuned.expand("resid_post", [layer])[0]
    with counted(pair.base, pair.tuned) as passes:
        recording = record(pair, rows, site.name, batch_size=batch_size)
    right, control = {}, {}
    for role in ("base", "tuned"):
        states = recording[role][site.name][:].float()
        for count in counts:
            sets = [word_vectors(pair.models[role], list(words)[:count])]
            sets += _random_words(pair.models[role], count, draws, seed)
            features = torch.stack([states @ own.T.to(states) for own in sets])
            hits = held_out_right(features, y[None], dealt[None], ridge=ridge)[:, 0].astype(float)
            right[role, count], control[role, count] = hits[0], hits[1:]
    return EffectPanel(
        table=table_of(word_lines(right, control, counts, rows.clusters, seed)),
        control=f"{draws} sets of random words of the same size",
        provenance=Provenance.of("concept_words", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({f"{role}, {count} words": values for (role, count), values in right.items()}),
        measured="held-out accuracy",
        heading="Concept words against random words",
    )  # fmt: skip


def word_vectors(model: AdaptedModel, words: Sequence[str]) -> Float[Tensor, "word d_model"]:
    """Unit output embeddings; of a word of several tokens the mean of theirs."""
    table = model.unembedding().detach()
    vectors = []
    for word in words:
        ids = token_ids(word if word[:1].isspace() else f" {word}", model.tokenizer, rendered_chat=True)
        if not ids:
            raise UserError(f"The word {word!r} has no tokens: leave it out.")
        vectors.append(table[ids].float().mean(0).cpu())
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


def _random_words(model: AdaptedModel, count: int, draws: int, seed: int) -> list[Float[Tensor, "word d_model"]]:
    table = model.unembedding().detach()
    random = np.random.default_rng(seed + 1)
    size = min(len(table), len(model.tokenizer))
    if count > size:
        raise UserError(f"{count} random words cannot be drawn from a vocabulary of {size}: give fewer words.")
    draws_of_words = [random.choice(size, count, replace=False) for _ in range(draws)]
    return [
        torch.nn.functional.normalize(table[torch.from_numpy(words)].float().cpu(), dim=-1) for words in draws_of_words
    ]


def word_lines(
    right: dict[tuple[str, int], np.ndarray], control: dict[tuple[str, int], np.ndarray], counts: Sequence[int],
    clusters: np.ndarray, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Lines per size of both models, and of the change beyond that of random words; p counts random sets as good."""
    lines = []
    for count in counts:
        for role in ("base", "tuned"):
            random = control[role, count]
            line = scored_line(f"{count} words", role, right[role, count], random.mean(0), clusters, seed)
            as_good = (random.mean(1) >= right[role, count].mean() - 1e-12).sum()
            lines.append({**line, "p": (1 + as_good) / (1 + len(random)), "random_best": float(random.mean(1).max())})
        change = right["tuned", count] - right["base", count]
        beside = (control["tuned", count] - control["base", count]).mean(0)
        lines.append(scored_line(f"{count} words", CHANGE, change, beside, clusters, seed))
    return lines
