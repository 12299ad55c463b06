"""``code_similarity``: MONA-style, training rows whose dictionary codes are those of a behaviour."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from probes.call_settings import call_settings
from probes.concepts.dictionary import Dictionary
from probes.influence.result import (
    CONTROL,
    RowInfluence,
    benchmark_of,
    check_rows,
    check_said,
    row_table,
    stand_ins,
    without_self,
)
from probes.influence.text_rankers import bm25
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.recording.record_pair import record
from workbench.typing import Float, Tensor


def generalised_jaccard(
    codes: Float[Tensor, "row latent"], others: Float[Tensor, "other latent"]
) -> Float[Tensor, "row other"]:
    """Sum of minima over sum of maxima of two codes that are not negative: 1 for the same, 0 for disjoint ones."""
    similarity = torch.zeros(len(codes), len(others))
    for number, other in enumerate(others):
        most = torch.maximum(codes, other).sum(1)
        similarity[:, number] = torch.minimum(codes, other).sum(1) / most.clamp_min(1e-12)
    return similarity


def _check(rows: Prompts, said: Mapping[str, Any]) -> None:
    """Refuse rows, queries and a dictionary of another width before the models are loaded."""
    check_said(rows, said)
    read, folder = Dictionary.load(said["dictionary"]), Path(said["base"] or "").expanduser()
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_width(read, (config.get("text_config") or config).get("hidden_size"))


@method(
    "mona",
    group="data",
    question="Which training rows excite the same dictionary features as the behaviour?",
    papers=("Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations",),
    cost="one forward pass per row and query",
    example="--queries queries.jsonl --dictionary sae --layer 0.5",
    any_adapter="which rows look alike to the model, whatever made them",
    check=_check,
)
def code_similarity(  # noqa: PLR0913 (a public call; all but three by keyword)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    dictionary: Annotated[Dictionary | str | Path, As("file")],
    layer: int | float | None = None,
    pool: Literal["max", "mean"] = "max",
    always_on: Annotated[float, Within(0, 1)] = 0.9,
    match: str | None = None,
    near: str | None = None,
    k: int = 5,
    batch_size: int = 16,
    controls: int = 20,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> RowInfluence:
    """Rank training rows by the generalised Jaccard similarity of their dictionary codes to the queries' (MONA).

    Prompt and answer are read together by the tuned model; the codes of their tokens, the first left out, are pooled.
    Latents that fire in nearly all training rows are dropped, as they fill the minima of every pair.

    Args:
        pair: Base and tuned; the tuned model's activations are encoded.
        prompts: The training rows, with or without answers.
        queries: Prompts that show the behaviour, worded otherwise than the training rows.
        dictionary: A SAELens folder for the residual stream of one model, or a :class:`probes.Dictionary`.
        layer: Where it reads; by default where its folder says it was trained.
        pool: Greatest or mean activation over a row's tokens.
        always_on: Latents that fire in more than this share of the training rows are dropped.
        match: A column that rows and queries share; adds the precision at k and AUC of this and of BM25.
        near: A column of the subject: adds the AUC against rows of the query's subject that are not right.
        k: Rows that the precision counts.
        batch_size: Rows per forward pass.
        controls: Random training rows that stand in for queries in the control.
        draws: Resamples of the intervals.
        seed: Of stand-ins and resamples.

    Returns:
        Score, interval, control and q of every training row [row].

    Raises:
        UserError: A dictionary of another width, no layer, too few rows or queries, queries that are training rows.

    Example:
        >>> probes.code_similarity(pair, train, queries=odd, dictionary="sae/")  # doctest: +SKIP
    """
    check_pair(pair)
    rows, asked_for = Prompts.of(prompts), Prompts.of(queries)
    check_rows(rows, asked_for, controls, match, near)
    read = Dictionary.load(dictionary) if isinstance(dictionary, str | Path) else dictionary
    place = _place(pair, read, layer)
    bar = progress or Silent()
    with counted(pair.tuned) as passes:
        codes, of_queries = (
            _codes(pair.tuned, texts, read, place, pool, batch_size, bar) for texts in (rows, asked_for)
        )
    useful = (codes > 0).float().mean(0) <= always_on
    if not (codes[:, useful] > 0).any():
        raise UserError("Every latent that fires does so in nearly all rows: raise always_on, or take another layer.")
    codes, of_queries, drawn = codes[:, useful], of_queries[:, useful], stand_ins(rows, controls, seed)
    similarity = generalised_jaccard(codes, of_queries).numpy().astype(np.float64)
    control = without_self(generalised_jaccard(codes, codes[drawn]).numpy(), drawn)
    texts = {"bm25": bm25(rows, asked_for)}
    return RowInfluence(
        table=row_table(similarity, control, rows, asked_for, texts, draws, seed),
        control=CONTROL,
        provenance=Provenance.of(
            "code_similarity", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, queries=asked_for),
        ),
        ranker="dictionary codes",
        benchmark=benchmark_of({"dictionary codes": similarity, **texts}, rows, asked_for, match, k, near),
        queries=len(asked_for),
    )  # fmt: skip


def _place(pair: ModelPair, read: Dictionary, layer: int | float | None) -> int:
    _check_width(read, pair.tuned.d_model)
    if layer is not None:
        return resolve_layers(layer, pair.tuned.n_layers)[0]
    if read.site is None or read.site.layer is None:
        raise UserError("The dictionary's folder does not say where it was trained: give layer.")
    return read.site.layer


def _check_width(read: Dictionary, width: int | None) -> None:
    """Raises :class:`UserError` for a dictionary of another width than the model's, where that is known."""
    if width is not None and len(read.weights["W_enc"]) != width:
        raise UserError(
            f"The dictionary reads activations of width {len(read.weights['W_enc'])} and the model has {width}: give "
            "one of this model (a crosscoder reads two models and cannot be used here)."
        )


def _codes(
    model: AdaptedModel, rows: Prompts, read: Dictionary, layer: int, pool: str, batch_size: int, bar: Progress
) -> Float[Tensor, "row latent"]:
    """Pooled codes of prompt and answer together, the first token left out."""
    tokenizer = model.tokenizer
    texts = [
        ids + (continuation_ids(row, tokenizer) if row.answer else [])
        for row, ids in zip(rows, encode(rows, tokenizer, model.max_positions), strict=True)
    ]
    recorded = record(
        model, Prompts.of([{"input_ids": ids} for ids in texts]), "resid_post", layers=[layer],
        positions=slice(1, None), batch_size=batch_size, progress=bar,
    )  # fmt: skip
    values = recorded[recorded.roles[0]]["resid_post", layer]
    number = torch.from_numpy(np.array(recorded.index["prompt"]))
    pooled = torch.zeros(len(rows), len(read.decoder))
    for start in range(0, len(number), 1024):
        of = number[start : start + 1024]
        codes = read.encode(values[start : start + 1024].float())
        if pool == "max":
            pooled.scatter_reduce_(0, of[:, None].expand_as(codes), codes, "amax")
        else:
            pooled.index_add_(0, of, codes)
    return pooled if pool == "max" else pooled / torch.bincount(number, minlength=len(rows)).clamp_min(1)[:, None]
