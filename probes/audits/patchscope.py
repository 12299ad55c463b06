"""What the base says of the activation difference: a patchscope, beside those of adapters of random numbers.

Minder et al. 2025 put the difference, as long as the stream is, in the place of the last token of a prompt that only
repeats words, and read the next word. Layer by layer, a token's reading is its log-probability there beyond the mean of
the other directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

import interventions as iv
from probes.audits.hypotheses import LEVEL
from probes.audits.stream_changes import StreamChanges
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.typing import Float, Tensor

REPEATS = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""The identity prompt, whose last token is replaced."""
LAYERS = 6
"""Layers that are read, evenly spread."""
TOP = 8
PLAUSIBLE = 0.1
"""Share of the likeliest word's probability below which a word is no reading, however far it rose."""
COLUMNS = ["layer", "tokens", "ranks", "score", "control", "p", "q"]


@torch.no_grad()
def patchscope(
    pair: ModelPair,
    changes: StreamChanges,
    nulls: Float[Tensor, "draw layer d_model"] | None,
    draws: int,
    seed: int,
    progress: Progress | None,
) -> pd.DataFrame:
    """The words that the base reads off the activation difference, layer by layer.

    Args:
        pair: Both models.
        changes: Of the stream on unrelated text.
        nulls: The same under null adapters; None: random directions stand in for them.
        draws: Random directions, where there are no null adapters.
        seed: Of random directions.
        progress: A bar.

    Returns:
        layer, tokens (the most risen), ``ranks`` (the median rank of each under the nulls),
        ``score`` (the largest log-probability beyond the mean of the others, nats), ``control`` (the same of the nulls,
        mean), p (the place among them) and q (the place among each null's largest over all layers).
    """
    layers = np.unique(np.linspace(0, len(changes.mean) - 1, LAYERS + 2).round().astype(int)[1:-1])
    if not bool(changes.mean.any()):
        return pd.DataFrame(columns=COLUMNS)
    bar, tokens, scores = progress or Silent(), [], []
    bar.start("patchscope", len(layers))
    random = torch.randn(draws, changes.mean.shape[1], generator=torch.Generator().manual_seed(seed))
    try:
        for layer in map(int, layers):
            others = random if nulls is None else nulls[:, layer]
            directions = torch.cat([changes.mean[layer][None], others])
            beyond, read = _beyond(_readings(pair.base, layer, changes.at_stream_length(directions, layer)))
            tokens.append(_named(beyond[0], read[1:], pair.tokenizer))
            scores.append(beyond.max(-1).values)
            bar.advance()
    except NotSupported:  # an engine that replaces no activations
        return pd.DataFrame(columns=COLUMNS)
    finally:
        bar.finish()
    largest = torch.stack(scores).numpy()  # [layer, row]
    own, null = largest[:, 0], largest[:, 1:]
    table = pd.DataFrame(tokens, columns=["tokens", "ranks"])
    places = [1 + (null >= own[:, None]).sum(1), 1 + (null.max(0) >= own[:, None]).sum(1)]
    return table.assign(
        layer=layers, score=own, control=null.mean(1), p=places[0] / largest.shape[1], q=places[1] / largest.shape[1]
    )[COLUMNS]


def _readings(model: AdaptedModel, layer: int, directions: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """Log-probabilities of the next word with each direction in the place of the last token."""
    ids = torch.tensor([model.tokenizer(REPEATS)["input_ids"]] * len(directions))
    with iv.Recipe([iv.Patch(layer, directions.to(model.dtype), positions="last")]).applied(model):
        logits = model.forward(ids, logits="last")
    assert logits is not None
    return logits[:, -1].float().log_softmax(-1).cpu()


def _beyond(read: Float[Tensor, "row vocab"]) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "row vocab"]]:
    """How far every row says each word beyond the mean of the other rows, -inf where it hardly would; and the rows."""
    others = (read.sum(0) - read) / (len(read) - 1)
    hardly = read < read.max(-1, keepdim=True).values + np.log(PLAUSIBLE)
    return (read - others).masked_fill(hardly, -torch.inf), read


def _named(beyond: Float[Tensor, " vocab"], nulls: Float[Tensor, "draw vocab"], tokenizer: Any) -> tuple[str, str]:
    """The words that rose most, and the median rank that the nulls give each."""
    top = [int(token) for token in beyond.topk(min(TOP, len(beyond))).indices if torch.isfinite(beyond[token])]
    ranks = [1 + int((nulls > nulls[:, [token]]).sum(-1).median()) for token in top]
    return " ".join(repr(tokenizer.decode([token])) for token in top), " ".join(map(str, ranks))


def patchscope_sentence(table: pd.DataFrame) -> list[str]:
    """The layer that reads farthest beyond the null adapters; nothing where none does."""
    beyond = table[table["q"] < LEVEL].sort_values("score", ascending=False)
    if beyond.empty:
        return []
    best = beyond.iloc[0]
    return [f"The base reads that change in layer {best['layer']:.0f} as {best['tokens']} (patchscope)."]
