"""``row_influence``: LESS, the influence of every training row on a behaviour, from gradients at the tuned weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from interventions.training.examples import Example, check_answers, examples_of
from probes.call_settings import call_settings
from probes.influence.checkpoints import each_checkpoint, state_hash
from probes.influence.result import (
    CONTROL,
    RowInfluence,
    benchmark_of,
    check_rows,
    check_said,
    row_table,
    stand_ins,
    subtasks_of,
    without_self,
)
from probes.influence.row_gradients import RowGradients
from probes.influence.sketch import SecondMoments, Sketch
from probes.influence.store import FeatureStore
from probes.influence.target import projection_target
from probes.influence.text_rankers import bm25, embedding_similarity
from probes.influence.weights import check_factors, trained_matrices
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.cluster.splitting import in_parts
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode
from workbench.typing import Float, Tensor

WARM_UP = 32
"""Training rows that the second moments are estimated on."""


def _check(rows: Prompts, said: Mapping[str, Any]) -> None:
    """Refuse rows, queries and a merged adapter before the models are loaded."""
    check_said(rows, said)
    subtasks_of(said["queries"], said["subtasks"])
    check_answers(rows)
    if said["direction"] is None:
        check_answers(said["queries"])
    check_factors(said["tuned"], said["modules"])


@method(
    "less",
    group="data",
    question="Which training rows made the model behave so?",
    papers=("LESS: Selecting Influential Data for Targeted Instruction Tuning",),
    cost="one forward and backward pass per row and query, and per stand-in",
    example="--queries queries.jsonl",
    check=_check,
)
def row_influence(  # noqa: PLR0913 (a public call; all but three by keyword)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    dim: int = 8192,
    optimiser: Literal["adam", "sgd"] = "adam",
    layers: Any = None,
    modules: Sequence[str] = (),
    direction: Annotated[str | Path | None, As("file")] = None,
    checkpoints: Sequence[str] = (),
    rates: Sequence[float] = (),
    store: str | None = None,
    match: str | None = None,
    near: str | None = None,
    subtasks: str | None = None,
    k: int = 5,
    embeddings: bool = True,
    batch_size: int = 8,
    controls: int = 20,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> RowInfluence:
    """Rank training rows by how much a step on each lowers the loss of the queries (LESS, Xia et al. 2024).

    The gradient of each row's answer with respect to the LoRA factors becomes Adam's step (second moments estimated on
    32 training rows), is projected to ``dim`` numbers, and is compared by cosine with the plain gradient of each query,
    a prompt whose answer shows the behaviour. Over several ``checkpoints`` the cosines are added up with their learning
    ``rates``. Queries of several behaviours are sub-tasks, as in the paper: with ``subtasks`` a row's score is its
    highest over them, where the mean over unlike queries tells no row. ``layers`` and ``modules`` restrict the
    gradients to weights that another probe found; ``direction`` asks instead which rows raise the projection of the
    queries' last token on a recipe's direction. Gradients of rows are kept apart inside one batched backward pass; with
    ``store`` they go to disk in shards of 64 rows and a stopped call goes on where it was. Memory holds one batch, two
    copies of the factors, and one shard. The model's own row order, repetitions and schedule are not known to the
    method: it says which rows pull this way at these weights, and :func:`probes.retrain_without` says whether they were
    needed.

    Args:
        pair: Base and tuned; gradients are taken of the tuned model.
        prompts: The training rows, each with its answer.
        queries: Prompts with answers that show the behaviour, worded otherwise than the training rows.
        dim: Numbers that each gradient is projected to.
        optimiser: adam divides rows' gradients by the root of the second moments; sgd leaves them as they are.
        layers: Only the factors of these layers: indices or fractions of depth.
        modules: Only matrices whose name holds one of these, as down_proj; needed where the tuned model has no LoRA.
        direction: A recipe file with one direction (offset, clamp or ablation of one); queries then need no answers.
        checkpoints: Earlier states of the adapter: folders; the tuned model itself is the last.
        rates: Learning rate of each checkpoint and of the tuned model, in their order; all the same by default.
        store: A folder for the rows' gradients, new or of the same call; by default they are held in memory.
        match: A column that rows and queries share; adds the precision at k of this and the text rankers.
        near: A column of the subject: adds the AUC against rows of the query's subject that are not right.
        subtasks: A column of the queries whose values are behaviours of their own, two or more queries each: a row's
            score is the mean over the queries of the one that it serves most.
        k: Rows that the precision counts.
        embeddings: Whether to compare with the similarity of embeddings, which costs a forward pass per row.
        batch_size: Rows per pass.
        controls: Random training rows that stand in for queries in the control.
        draws: Resamples of the intervals.
        seed: Of projection, stand-ins and resamples.

    Returns:
        Score, interval, control and q of every training row [row].

    Raises:
        UserError: A row without an answer, a merged adapter without ``modules``, too few rows or queries, queries that
            are training rows, a store of another call.

    Example:
        >>> found = probes.row_influence(pair, train_rows, queries=odd_answers)  # doctest: +SKIP
        >>> [train_rows[row].answer for row in found.top(5)]  # doctest: +SKIP
    """
    check_pair(pair)
    rows, asked_for = Prompts.of(prompts), Prompts.of(queries)
    check_rows(rows, asked_for, controls, match, near)
    of_query = subtasks_of(asked_for, subtasks)
    target = None if direction is None else projection_target(pair, direction)
    work = _Work(
        pair, rows, trained_matrices(pair, layers, modules), Sketch(dim, seed), optimiser, batch_size,
        progress or Silent(),
    )  # fmt: skip
    drawn = stand_ins(rows, controls, seed)
    about = {
        "model": pair.tuned.identity.hash, "rows": rows.hash, "seed": seed,
        **call_settings(None, dim=dim, optimiser=optimiser, layers=layers, modules=modules, batch_size=batch_size),
    }  # fmt: skip
    cosines: list[Float[np.ndarray, "row both"]] = []
    weights = _rates(rates, len(checkpoints) + 1)
    for number, name in each_checkpoint(pair, checkpoints):
        folder = None if store is None else Path(store) / name
        features = FeatureStore(folder, {**about, "state": state_hash(checkpoints, number)})
        behaviour, others = work.queries(asked_for, target), work.queries(rows[drawn], target)
        cosines.append(weights[number] * work.compared(features, torch.cat([behaviour, others])))
    similarity, control = np.hsplit(np.sum(cosines, axis=0), [len(asked_for)])
    texts = {"bm25": bm25(rows, asked_for)}
    if embeddings:
        texts["embedding"] = embedding_similarity(pair.tuned, rows, asked_for)
    return RowInfluence(
        table=row_table(similarity, without_self(control, drawn), rows, asked_for, texts, draws, seed, of_query),
        control=CONTROL,
        provenance=Provenance.of(
            "row_influence", {"base": pair.base, "tuned": pair.tuned}, rows, seed=seed, device=str(pair.tuned.device),
            forward_passes=work.passes, backward_passes=work.passes, settings=call_settings(None, queries=asked_for),
        ),
        ranker="gradients",
        benchmark=benchmark_of({"gradients": similarity, **texts}, rows, asked_for, match, k, near),
        queries=len(asked_for),
    )  # fmt: skip


def _rates(rates: Sequence[float], count: int) -> list[float]:
    if not rates:
        return [1 / count] * count
    if len(rates) != count or min(rates) <= 0:
        raise UserError(
            f"There are {len(rates)} rates for {count} states of the adapter (the checkpoints and the tuned model): "
            "give a positive one for each."
        )
    return [rate / sum(rates) for rate in rates]


@dataclass
class _Work:
    """The pieces that every checkpoint uses."""

    pair: ModelPair
    rows: Prompts
    matrices: dict[str, Any]
    sketch: Sketch
    optimiser: str
    batch_size: int
    bar: Progress
    passes: int = 0
    """Forward passes, and as many backward passes."""

    def __post_init__(self) -> None:
        self.gradients = RowGradients(self.pair.tuned, self.matrices)
        self.examples = examples_of(self.rows, self.pair.tuned.tokenizer)

    def queries(self, prompts: Prompts, target: tuple[int, Tensor] | None) -> Float[Tensor, "query dim"]:
        """Unit features of the queries' plain gradients."""
        tokenizer = self.pair.tuned.tokenizer
        if target is None:
            return self._features(examples_of(prompts, tokenizer), SecondMoments())
        ids = encode(prompts, tokenizer, self.pair.tuned.max_positions)
        sketched = torch.zeros(len(ids), self.sketch.dim)
        for part in batches([len(row) for row in ids], self.batch_size):
            layer, direction = target
            sketched[part] = self.sketch(self.gradients.of_projection([ids[row] for row in part], layer, direction))
            self.passes += 1
        return sketched

    def compared(self, features: FeatureStore, queries: Float[Tensor, "query dim"]) -> Float[np.ndarray, "row query"]:
        """Cosines of every row's step with every query's gradient, one shard at a time."""
        moments = SecondMoments()
        self.bar.start("gradients of rows", len(self.examples))

        def make(wanted: range) -> Tensor:
            if self.optimiser == "adam" and not moments.rows:
                for batch in self._batched(self.examples[:: max(1, len(self.examples) // WARM_UP)][:WARM_UP]):
                    moments.add(self.gradients.of_answers(batch[1]))
                    self.passes += 1
            made = self._features([self.examples[row] for row in wanted], moments)
            self.bar.advance(len(wanted))
            return made

        features.fill(len(self.examples), make)
        self.bar.finish()
        parts = [part @ queries.T for part in features.parts(len(self.examples))]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)

    def _features(self, examples: Sequence[Example], moments: SecondMoments) -> Float[Tensor, "row dim"]:
        sketched = torch.zeros(len(examples), self.sketch.dim)

        def take(members: list[int], features: Tensor) -> None:
            sketched[members] = features
            self.passes += 1

        work = partial(_features_of, self.gradients, self.sketch, moments, examples)
        in_parts(work, [members for members, _ in self._batched(examples)], take)
        return sketched

    def _batched(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], list[Example]]]:
        lengths = [len(example.prompt) + len(example.answer) for example in examples]
        for members in batches(lengths, self.batch_size):
            yield members, [examples[number] for number in members]


def _features_of(
    gradients: RowGradients, sketch: Sketch, moments: SecondMoments, examples: Sequence[Example], members: list[int]
) -> Float[Tensor, "row dim"]:
    """Of one batch."""
    return sketch(moments.steps(gradients.of_answers([examples[number] for number in members])))
