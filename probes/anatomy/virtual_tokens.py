"""virtual_tokens: what the trained tokens of a soft prompt mean, how far they drifted, and what each one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.call_settings import call_settings
from probes.lens import kl
from probes.results import ProbeResult, Provenance
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.virtual_tokens import VirtualTokens, open_virtual_tokens
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.stats.bootstrap import mean_interval
from workbench.stats.fdr import q_values
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class VirtualTokenMap(ProbeResult):
    """One row per virtual token, in their order (``position``).

    ``score``: cosine with the nearest word (``word``); ``low``, ``high`` equal it (the weights are known exactly);
    ``control``: the nearest cosine of random vectors, ``q`` of a larger one. ``norm``: in mean norms of words;
    ``drift``: distance from the token that training began with, in mean norms (NaN where the adapter does not say; only
    CPT does).
    ``effect``: KL (nats) of the next word when this token alone is taken out, the mean over texts, with ``effect_low``
    and ``effect_high``; ``alone``: KL of this token alone from none (NaN without texts).
    ``additivity``: 1 - ||D - sum of D_i||^2 / ||D||^2 of the next word's logits, D with all tokens, D_i with one alone,
    with its interval over texts; 1 where tokens simply add up. ``off_is_base``: whether the model without the tokens is
    the base bit for bit.
    """

    kind: str
    off_is_base: bool
    additivity: tuple[float, float, float]

    title: ClassVar[str] = "Virtual tokens"
    unit: ClassVar[str] = "cosine with the nearest word"

    def figure(self) -> go.Figure:
        """Nearest-word cosine per token beside random vectors; labels are the nearest words."""
        named = self.table.assign(label=self.table["position"].astype(str) + " " + self.table["word"].astype(str))
        return labelled_points(named, "label", title=self.title, unit=self.unit)

    def summary(self) -> str:
        table = self.table
        words = int((table["q"] < 0.05).sum())
        text = (
            f"{self.kind}: {len(table)} virtual tokens, {words} nearer to a word than random vectors (q < 0.05; mean "
            f"cosine {table['score'].mean():.2f}, random {table['control'].mean():.2f})"
        )
        if table["drift"].notna().any():
            text += f"; mean drift from the start {table['drift'].mean():.3g} word norms"
        if table["effect"].notna().any():
            most = table.sort_values("effect", kind="stable").iloc[-1]
            text += (
                f"; token {most['position']:.0f} matters most ({most['effect']:.3g} nats [{most['effect_low']:.3g}, "
                f"{most['effect_high']:.3g}]); additivity {self.additivity[0]:.2f}"
            )
        return (
            f"{text}; without them the model is {'' if self.off_is_base else 'not '}the base. Control: {self.control}."
        )


@method(
    "virtual-tokens",
    group="weights",
    question="What do a soft prompt's tokens mean, how far did they drift, and which of them matter?",
    papers=(
        "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods",
        "Approximated Prompt Tuning for Vision-Language Pre-trained Models",
    ),
    needs=Needs(folders=True),
    cost="a few forward passes per text and virtual token; none without texts",
)
def virtual_tokens(
    base: Any,
    tuned: Any = None,
    *,
    texts: Annotated[Any, As("file")] = None,
    task: int = 0,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> VirtualTokenMap:
    """Read prompt tuning, P-tuning, multitask prompt tuning and CPT as PEFT makes their embeddings.

    Args:
        base: The base: a model, a folder or a hub id.
        tuned: The adapter: its folder, or a ``PeftModel``.
        texts: Prompts (or their file) on which tokens are taken out; none: only the embeddings are read.
        task: Which task's prompt, of multitask prompt tuning.
        draws: Random vectors of the control.
        seed: Of the random vectors and the intervals.

    Raises:
        UserError: No adapter of virtual tokens, or one of prefixes.
    """
    opened = open_virtual_tokens(base, tuned)
    made = opened.embeddings(task).float().cpu()
    words = opened.base.hf.get_input_embeddings().weight.detach().float().cpu()
    table = _read(opened, made, words, draws, seed)
    rows = None if texts is None else prompts_of(texts)
    effects, additivity, passes = _effects(opened, made, rows, seed, progress or Silent())
    return VirtualTokenMap(
        table=table.assign(**effects),
        control=f"random vectors, each with the nearest of all words ({draws} draws)",
        provenance=Provenance.of(
            "virtual_tokens", {"base": opened.base, "tuned": opened}, rows, seed=seed, device=str(opened.base.device),
            forward_passes=passes,
            settings=call_settings(None, texts=texts if isinstance(texts, str) else rows),
        ),
        kind=opened.kind,
        off_is_base=_off_is_base(opened),
        additivity=additivity,
    )  # fmt: skip


def prompts_of(texts: Any) -> Prompts:
    """Prompts, or those of a file."""
    return Prompts.load(texts) if isinstance(texts, str) else Prompts.of(texts)


def nearest_words(vectors: Float[Tensor, "row d_model"], words: Float[Tensor, "word d_model"]) -> tuple[Tensor, Tensor]:
    """(cosine, id) of the nearest word of every vector."""
    units = torch.nn.functional.normalize(words, dim=1)
    nearest = (torch.nn.functional.normalize(vectors, dim=1) @ units.T).max(1)
    return nearest.values, nearest.indices


def _read(opened: VirtualTokens, made: Tensor, words: Tensor, draws: int, seed: int) -> pd.DataFrame:
    cosine, ids = nearest_words(made, words)
    random = torch.randn(draws, made.shape[1], generator=torch.Generator().manual_seed(1_000_003 + seed))
    chance = nearest_words(random, words)[0].numpy()
    size, start = float(words.norm(dim=1).mean()), opened.start_ids
    drift = np.full(len(made), np.nan)
    if start is not None:
        if len(start) != len(made):
            raise UserError(f"{opened.name} names {len(start)} start tokens for {len(made)} virtual tokens.")
        drift = ((made - words[start]).norm(dim=1) / size).numpy()
    p = (1 + (chance[None] >= cosine.numpy()[:, None]).sum(1)) / (draws + 1)
    said = [opened.base.tokenizer.decode([int(number)]) for number in ids] if opened.base.tokenizer else ids.tolist()
    return pd.DataFrame({
        "position": np.arange(len(made)), "score": cosine.numpy(), "low": cosine.numpy(), "high": cosine.numpy(),
        "control": float(chance.mean()) if draws else np.nan, "q": q_values(p), "word": said,
        "norm": (made.norm(dim=1) / size).numpy(), "drift": drift,
    })  # fmt: skip


@torch.no_grad()
def _effects(
    opened: VirtualTokens, made: Tensor, rows: Prompts | None, seed: int, watch: Progress
) -> tuple[dict[str, Any], tuple[float, float, float], int]:
    """Columns of what each token does, the additivity with its interval, and the forward passes."""
    nothing = np.full(len(made), np.nan)
    names = ("effect", "effect_low", "effect_high", "alone")
    if rows is None:
        return dict.fromkeys(names, nothing), (np.nan, np.nan, np.nan), 0
    left_out, alone, shares = [], [], []
    watch.start("virtual tokens", len(rows))
    for place in tracked(range(len(rows)), watch):
        ids = opened.base.encode(rows[[place]]).input_ids
        whole, none = (next_logits(opened.base, ids, prompt) for prompt in (made, made[:0]))
        every = torch.arange(len(made))
        without = torch.stack([next_logits(opened.base, ids, made[every != token]) for token in range(len(made))])
        single = torch.stack([next_logits(opened.base, ids, made[[token]]) for token in range(len(made))])
        left_out.append(kl(whole[None].expand_as(without), without).numpy())
        alone.append(kl(single, none[None].expand_as(single)).numpy())
        change, parts = whole - none, (single - none).sum(0)
        shares.append(1 - float((change - parts).square().sum() / change.square().sum().clamp_min(1e-12)))
    watch.finish()
    cells = [mean_interval(column, seed=seed, clusters=rows.clusters) for column in np.stack(left_out, 1)]
    additive = mean_interval(np.array(shares), seed=seed, clusters=rows.clusters)
    columns = {
        "effect": [cell.estimate for cell in cells], "effect_low": [cell.low for cell in cells],
        "effect_high": [cell.high for cell in cells], "alone": np.stack(alone, 1).mean(1),
    }  # fmt: skip
    return columns, (additive.estimate, additive.low, additive.high), len(rows) * (2 + 2 * len(made))


def next_logits(model: AdaptedModel, ids: Tensor, prompt: Float[Tensor, "token d_model"]) -> Float[Tensor, " vocab"]:
    """Logits of the word after one text with ``prompt`` before it."""
    words = model.hf.get_input_embeddings()(ids.to(model.device))
    before = prompt.to(words)[None]
    with model.active():
        logits: Tensor = model.inner(inputs_embeds=torch.cat([before, words], 1), use_cache=False).logits
    return logits[0, -1].float().cpu()


@torch.no_grad()
def _off_is_base(opened: VirtualTokens) -> bool:
    vocab = int(opened.base.hf.config.get_text_config().vocab_size)
    ids = torch.arange(8, device=opened.base.device)[None] * 7 % vocab
    plain = opened.base.hf(input_ids=ids).logits
    with opened.peft_model.disable_adapter():
        off = opened.peft_model(input_ids=ids).logits
    return bool(torch.equal(plain, off))
