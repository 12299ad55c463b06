"""``tuning_dictionary``: crosscoders of base and tuned, autoencoders of the difference, transcoders of tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from probes.call_settings import of_recording
from probes.concepts.dictionary import Dictionary
from probes.dictionaries.batch_topk import Trained, Training, train
from probes.dictionaries.examples import top_examples
from probes.dictionaries.labelled import label_features
from probes.dictionaries.result import TuningDictionary, dictionary_of
from probes.dictionaries.scaling import Directions, latent_table, scale
from probes.dictionaries.streaming import Kind, SiteRows
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Recorded, method
from workbench.progress import Progress, Silent
from workbench.recording.recording import Recording
from workbench.recording.sink_rows import Tokens

_RECORDS = Recorded(positions="all", layers=0.5)
_COST = "one forward pass of each model; training costs 6 x width x (d_in + d_out) operations per row and epoch"


@method(
    "difference-sae",
    group="directions",
    question="Which sparse features make up what tuning changed?",
    records=_RECORDS,
    cost=_COST,
    fixed={"kind": "difference"},
    example="--layer 0.5 --width 64 --k 4 --batch-size 32",
)
@method(
    "tuning-transcoder",
    group="directions",
    question="Which features of the base's activation call up what tuning changed?",
    records=_RECORDS,
    cost=_COST,
    fixed={"kind": "transcoder"},
    example="--layer 0.5 --width 64 --k 4 --batch-size 32",
)
@method(
    "crosscoder",
    group="directions",
    question="Which features has only the tuned model, which only the base, and which do both share?",
    records=_RECORDS,
    cost=_COST,
    fixed={"kind": "crosscoder"},
    example="--layer 0.5 --width 64 --k 4 --batch-size 32",
)
def tuning_dictionary(  # noqa: PLR0913 (a public call; all but two by keyword)
    recording: Recording,
    kind: Kind = "crosscoder",
    *,
    layer: int | None = None,
    width: int = 2048,
    k: int = 32,
    epochs: int = 2,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    dictionary: Annotated[str | Path | None, As("file")] = None,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    top: int = 10,
    examples: int = 5,
    draws: int = 200,
    tokens: Tokens = "content",
    seed: int = 0,
    progress: Progress | None = None,
) -> TuningDictionary:
    """Train a BatchTopK dictionary on a recorded site of both models, and say whose its latents are.

    ``kind``: "crosscoder", one set of latents with a decoder row for each model (Lindsey et al. 2024); "difference", a
    sparse autoencoder of tuned - base; "transcoder", from the base's activation to tuned - base. Four fifths of the
    prompts are trained on, the rest is scored. A crosscoder's latents are told apart by latent scaling (Minder et al.
    2025, "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning"), not by decoder norms, which mistake
    shared latents for the tuned model's own. Rows stream from the recording's shards: memory holds one buffer of them
    (8 batches), the weights, and Adam's two moments. No forward passes: the recording is read.

    Args:
        kind: What the dictionary reads and writes.
        layer: Which of the recorded layers; by default the middle one of them.
        width: Latents.
        k: Latents that are active per row, on average.
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        learning_rate: Adam's step size; it falls to 0 over the last 30 %.
        dictionary: A SAELens folder that save_dictionary wrote for this kind; nothing is trained then.
        labels: The column of the prompts that holds their class: which latents follow it, beside the difference of
            means.
        top: Latents whose examples are kept, those that carry most of tuning's change; and those that follow labels.
        examples: Held-out contexts kept of each of them.
        draws: Resamples of the intervals.
        tokens: Which of the recorded tokens are read: content leaves attention sinks out, or all.
        seed: Of the held-out prompts, the first weights, the order of rows and the resamples.

    Returns:
        The latents with their scores [latent], the weights, examples, and what follows the labels.

    Raises:
        UserError: Only one model was recorded, fewer than five prompts, fewer rows than a batch, nothing that tuning
            changed, a dictionary of another width or kind.

    Example:
        >>> found = probes.tuning_dictionary(rec, width=512, k=16)  # doctest: +SKIP
        >>> found.offset(int(found.frame()["latent"][0]), strength=4.0)  # doctest: +SKIP
    """
    rows = SiteRows.of(recording, kind, layer, tokens, seed)
    if dictionary is None:
        bar, settings = progress or Silent(), Training(width, k, epochs, batch_size, learning_rate, seed)
        trained = train(rows, settings, bar)
    else:
        trained = Trained(_stored(dictionary, rows), [])
    made = dictionary_of(trained.weights, kind, rows.site)
    directions = Directions.of(made.decoder, kind == "crosscoder")
    sums = scale(rows, made, directions, seed)
    table = latent_table(sums, directions, draws, seed)
    if not len(table):
        raise UserError("No latent fires on the held-out prompts: train longer, or record more prompts.")
    features = None if labels is None else label_features(rows, made, labels, draws, seed)
    strongest = table.sort_values("explained", ascending=False)["latent"].head(top).astype(int).tolist()
    if features is not None and top:
        strongest += [int(latent) for latent in features["latent"].dropna() if int(latent) not in strongest]
    return TuningDictionary(
        table=table.assign(layer=rows.site.layer),
        control=(
            "base and tuned exchanged in a random half of the prompts" if kind == "crosscoder"
            else "the same activations along a random direction"
        ),
        provenance=of_recording(
            "tuning_dictionary", recording, ("base", "tuned"), seed, {"layer": int(rows.site.layer or 0)}
        ),
        form=kind, site=rows.site.kind, layer=int(rows.site.layer or 0), weights=trained.weights,
        history=pd.DataFrame(trained.history, columns=["step", "loss", "dead"]),
        examples=top_examples(rows, made, strongest, recording.index, examples),
        labelled=pd.DataFrame(columns=_LABELLED) if features is None else features,
        explained=sums.explained, active=sums.active, tokens=rows.tokens,
    )  # fmt: skip


_LABELLED = ["feature", "latent", "auroc", "low", "high", "train", "control"]


def _stored(folder: str | Path, rows: SiteRows) -> dict[str, Any]:
    """The weights of a folder that was written for rows of this kind and width."""
    read = Dictionary.load(folder)
    d_in, d_out = (side.shape[1] for side in rows.pair(rows.train[:1]))
    if tuple(read.weights["W_enc"].shape) != (d_in, len(read.decoder)) or read.decoder.shape[1] != d_out:
        raise UserError(
            f"The dictionary in {folder} reads width {read.weights['W_enc'].shape[0]} and writes "
            f"{read.decoder.shape[1]}, and a {rows.kind} here reads {d_in} and writes {d_out}: give one of this kind "
            "and model."
        )
    if read.architecture != "jumprelu" or read.subtract_bias or read.normalize != "none":
        raise UserError(
            f"The dictionary in {folder} is not of the form that save_dictionary writes: train one here, or read it "
            "with concept_directions(method='sae')."
        )
    return read.weights
