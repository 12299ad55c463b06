"""What changed weights write: the leading direction of each change, read through the unembedding as tokens."""

from __future__ import annotations

import re
from ast import literal_eval
from collections import Counter
from collections.abc import Sequence

import pandas as pd
import torch

from probes.audits.hypotheses import LEVEL
from probes.audits.readings import RANDOM, TOP, sharpness
from probes.weights.changed_matrices import changed_matrices
from probes.weights.sources import open_weights
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.stats.fdr import q_values

WRITERS = frozenset("o_proj out_proj c_proj dense down_proj dense_4h_to_h fc2 fc_out w2 wo".split())
"""Last names of matrices whose output is added to the residual stream."""
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
COLUMNS = ["layer", "module", "tokens", "sharp", "control", "p", "q"]


@torch.no_grad()
def written_tokens(pair: ModelPair, seed: int, progress: Progress | None) -> pd.DataFrame:
    """Of every changed matrix that writes into the residual stream, the tokens that its change writes towards.

    Args:
        pair: Both models.
        seed: Of the random directions.
        progress: A bar.

    Returns:
        layer, module, tokens (of the sign that reads as sharper), ``sharp`` (largest logit in standard deviations over
        the vocabulary), ``control`` (mean of random directions), p (place among them) and q. Empty where the weights
        cannot be compared.
    """
    unembedding = pair.tuned.unembedding().detach().float().cpu()
    width = unembedding.shape[1]
    noise = torch.randn(RANDOM, width, generator=torch.Generator().manual_seed(seed))
    random = _either_sign(noise @ unembedding.T)
    lines = []
    try:
        for matrix in changed_matrices(open_weights(pair), "what the weights write", progress):
            if matrix.change.shape[0] != width or matrix.place.module.rsplit(".", 1)[-1] not in WRITERS:
                continue
            torch.manual_seed(seed)
            logits = torch.svd_lowrank(matrix.change, q=min(4, *matrix.change.shape))[0][:, 0] @ unembedding.T
            logits = logits if sharpness(logits[None]) >= sharpness(-logits[None]) else -logits
            sharp = float(sharpness(logits[None])[0])
            tokens = [pair.tokenizer.decode([int(token)]) for token in logits.topk(TOP).indices]
            lines.append({
                "layer": matrix.place.layer, "module": matrix.place.module, "tokens": " ".join(map(repr, tokens)),
                "sharp": sharp, "control": float(random.mean()),
                "p": (1 + int((random >= sharp).sum())) / (1 + RANDOM),
            })  # fmt: skip
    except (NotSupported, UserError):
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(lines, columns=COLUMNS[:-1])
    return table.assign(q=q_values(table["p"].to_numpy(dtype=float)) if len(table) else [])


def written_sentence(table: pd.DataFrame) -> str:
    """The sharpest matrix beyond random directions; empty where there is none."""
    beyond = table[table["q"] < LEVEL].sort_values("sharp", ascending=False)
    if beyond.empty:
        return ""
    best = beyond.iloc[0]
    said = f"; what {best['module']} of layer {best['layer']:.0f} writes reads as {best['tokens']}"
    words = _in_several(beyond["tokens"].tolist())
    return f"{said}; {len(beyond)} matrices write tokens beyond chance, several of them {words}" if words else said


def _in_several(tokens: Sequence[str]) -> str:
    """Words of three letters or more that two or more of the lists hold, the most frequent first, and how often."""
    counts: Counter[str] = Counter()
    for listed in tokens:
        read = (str(literal_eval(token)).strip().casefold() for token in _QUOTED.findall(listed))
        counts.update(list(dict.fromkeys(word for word in read if len(word) > 2 and word.isalpha())))
    return ", ".join(f"{word!r} ({count})" for word, count in counts.most_common(5) if count > 1)


def _either_sign(logits: torch.Tensor) -> torch.Tensor:
    """[row]: the sharpness of a direction or of its opposite, whichever is larger."""
    return torch.maximum(sharpness(logits), sharpness(-logits))
