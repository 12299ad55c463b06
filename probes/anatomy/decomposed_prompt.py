"""decomposed_prompt: DePT's two parts, a short soft prompt and low-rank offsets of the embeddings, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from probes.anatomy.foreign_adapter import foreign_adapter
from probes.anatomy.spaces import Svd
from probes.anatomy.virtual_tokens import nearest_words, prompts_of
from probes.call_settings import call_settings
from probes.lens import kl
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor

WEIGHTS = "adapter_model.safetensors"
PARTS = ("soft prompt", "embedding offsets")


@dataclass(frozen=True, kw_only=True)
class DecomposedPrompt(ProbeResult):
    """One row per part (``module``): the soft prompt, the embedding offsets.

    ``score``: KL (nats) of the next word without this part from the word with both, the mean over texts;
    ``control``: the same part random, row by row of its own norms, in place of the trained one, against both; ``q`` of
    the difference. ``alone``: KL of this part alone from the plain base; ``size``: mean norm of its rows in mean norms
    of words; ``rank``: with 90 % of its squared norm. ``rows``: position, part, size, and for the soft prompt the
    nearest word with its cosine.
    """

    rows: pd.DataFrame
    resampled: str = "texts"

    title: ClassVar[str] = "The two parts of a decomposed prompt"
    unit: ClassVar[str] = "KL of the next word without the part (nats)"

    def summary(self) -> str:
        said = "; ".join(
            f"{row['module']}: {row['score']:.3g} nats [{row['low']:.3g}, {row['high']:.3g}] (random "
            f"{row['control']:.3g}), size {row['size']:.2f}, rank {row['rank']:.0f}"
            for _, row in self.table.iterrows()
        )
        return f"{said}; over {self.resampled}. Control: {self.control}."


@method(
    "decomposed-prompt",
    group="weights",
    question="What do the short prompt and the embedding offsets of a DePT adapter do, each for itself?",
    papers=("DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning",),
    needs=Needs(folders=True),
    cost="six forward passes per text",
    example="--texts prompts.jsonl",
)
def decomposed_prompt(
    base: Any,
    tuned: Any = None,
    *,
    texts: Annotated[Any, As("file")] = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DecomposedPrompt:
    """Take each of DePT's two parts out, and put a random one of its size in its place (Shi & Lipani 2024).

    Before the words stand virtual tokens, and to the embedding of the i-th word row i of (A B) alpha / sqrt(r) is
    added, whatever the word is. The adapter's own fork of PEFT was written for T5; on a decoder positions are counted
    from the first word.

    Args:
        base: The base: a model, a folder or a hub id.
        tuned: The folder of a DePT adapter (peft_type PROMPT_TUNING_LORA, weights as safetensors).
        texts: Prompts, or their file.
        seed: Of the random parts and the intervals.

    Raises:
        UserError: No texts, no DePT adapter, another width than the base's, or a text longer than it has offsets for.
    """
    from workbench.models.pair import load_one

    if texts is None:
        raise UserError("What the parts do depends on the text: give texts, prompts or a file of them.")
    model = base if isinstance(base, AdaptedModel) else load_one(base)
    adapter = foreign_adapter(model.identity, tuned)
    parts = read_parts(adapter.folder)
    rows = prompts_of(texts)
    words = model.hf.get_input_embeddings().weight.detach().float().cpu()
    if words.shape[1] != parts.prompt.shape[1]:
        raise UserError(
            f"{adapter.folder} has embeddings of {parts.prompt.shape[1]} numbers and the base of {words.shape[1]}: "
            "give the base that it was trained on."
        )
    effects = _effects(model, rows, parts, seed, progress or Silent())
    table = pd.DataFrame([
        {"module": name, **_row(effects[name], rows, seed), **_shape(part, words)}
        for name, part in zip(PARTS, (parts.prompt, parts.offsets), strict=True)
    ])  # fmt: skip
    return DecomposedPrompt(
        table=with_q(table, keep_p=False),
        control="the same part with random rows of the same norms",
        provenance=Provenance.of(
            "decomposed_prompt", {"base": model, "tuned": adapter}, rows, seed=seed,
            device=str(model.device), forward_passes=len(rows) * 6,
            settings=call_settings(None, texts=texts if isinstance(texts, str) else rows),
        ),
        rows=_each_row(parts, words, model),
        resampled=units_of(rows.clusters).replace("prompts", "texts"),
    )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """``prompt`` stands before the words; ``offsets`` [position, d_model] are added to them."""

    prompt: Float[Tensor, "token d_model"]
    offsets: Float[Tensor, "position d_model"]


def read_parts(folder: str) -> Parts:
    """Both parts of a stored DePT adapter.

    Raises:
        UserError: The folder is no DePT adapter, or its weights are stored as pickle.
    """
    named = Path(folder) / "adapter_config.json"
    config = json.loads(named.read_text()) if named.is_file() else {}
    if config.get("peft_type") != "PROMPT_TUNING_LORA":
        raise UserError(
            f"{folder} is no DePT adapter: give a folder whose adapter_config.json says PROMPT_TUNING_LORA."
        )
    stored = load_file(str(Path(folder) / WEIGHTS))
    sides = {name.rpartition(".")[2]: values.float() for name, values in stored.items()}
    wanted = ("prompt_embeddings", "lora_embedding_A", "lora_embedding_B")
    if absent := [name for name in wanted if name not in sides]:
        raise UserError(f"{folder} holds no {absent[0]}, which a DePT adapter saves: the file is torn.")
    down, up = sides["lora_embedding_A"], sides["lora_embedding_B"]
    scaling = float(config.get("lora_alpha", 1)) / max(1, down.shape[1]) ** 0.5
    return Parts(sides["prompt_embeddings"], down @ up * scaling)


def next_logits(model: AdaptedModel, ids: Tensor, parts: Parts) -> Float[Tensor, " vocab"]:
    """Logits of the word after one text, with both parts."""
    words = model.hf.get_input_embeddings()(ids.to(model.device))
    count = words.shape[1]
    if count > len(parts.offsets):
        raise UserError(
            f"A text has {count} tokens and the adapter offsets for {len(parts.offsets)}: give shorter ones."
        )
    read = torch.cat([parts.prompt.to(words)[None], words + parts.offsets[:count].to(words)], 1)
    with model.active():
        logits: Tensor = model.inner(inputs_embeds=read, use_cache=False).logits
    return logits[0, -1].float().cpu()


@torch.no_grad()
def _effects(
    model: AdaptedModel, rows: Prompts, parts: Parts, seed: int, watch: Progress
) -> dict[str, dict[str, np.ndarray]]:
    """Per part: KL without it, with a random one in its place, and of it alone from the base; [text]."""
    generator = torch.Generator().manual_seed(seed)
    taken: dict[str, dict[str, list[float]]] = {name: {"without": [], "random": [], "alone": []} for name in PARTS}
    watch.start("decomposed prompt", len(rows))
    none = Parts(parts.prompt[:0], torch.zeros_like(parts.offsets))
    changes: dict[str, tuple[Callable[[], Parts], Parts]] = {
        PARTS[0]: (
            lambda: replace(parts, prompt=_random_rows(parts.prompt, generator)), replace(parts, prompt=none.prompt)
        ),
        PARTS[1]: (
            lambda: replace(parts, offsets=_random_rows(parts.offsets, generator)),
            replace(parts, offsets=none.offsets),
        ),
    }  # fmt: skip
    for place in tracked(range(len(rows)), watch):
        ids = model.encode(rows[[place]]).input_ids
        whole, plain = (next_logits(model, ids, part) for part in (parts, none))
        for name, (random, without) in changes.items():
            left_out = next_logits(model, ids, without)
            taken[name]["without"].append(float(kl(whole[None], left_out[None])))
            taken[name]["random"].append(float(kl(whole[None], next_logits(model, ids, random())[None])))
            other = PARTS[1 - PARTS.index(name)]
            taken[other]["alone"].append(float(kl(left_out[None], plain[None])))
    watch.finish()
    return {name: {key: np.array(values) for key, values in own.items()} for name, own in taken.items()}


def _random_rows(own: Float[Tensor, "row d_model"], generator: torch.Generator) -> Float[Tensor, "row d_model"]:
    drawn = torch.nn.functional.normalize(torch.randn(own.shape, generator=generator), dim=-1)
    return drawn * own.norm(dim=-1, keepdim=True)


def _row(own: dict[str, np.ndarray], rows: Prompts, seed: int) -> dict[str, float]:
    line = beside_control(own["without"], own["random"], rows.clusters, seed=seed)
    return {**line, "alone": float(own["alone"].mean()), "n": len(rows)}


def _shape(part: Tensor, words: Tensor) -> dict[str, float]:
    used = part[part.norm(dim=-1) > 0]
    return {
        "size": float(part.norm(dim=-1).mean() / words.norm(dim=-1).mean()),
        "rank": float(Svd.of(used).energy_rank(0.9)) if len(used) else 0.0,
    }


def _each_row(parts: Parts, words: Tensor, model: AdaptedModel) -> pd.DataFrame:
    size = float(words.norm(dim=-1).mean())
    cosine, ids = nearest_words(parts.prompt, words)
    named = ids.tolist() if model.tokenizer is None else [model.tokenizer.decode([int(token)]) for token in ids]
    prompt = pd.DataFrame({
        "part": PARTS[0], "position": range(len(named)), "size": (parts.prompt.norm(dim=-1) / size).numpy(),
        "word": named, "cosine": cosine.numpy(),
    })  # fmt: skip
    offsets = pd.DataFrame({
        "part": PARTS[1], "position": range(len(parts.offsets)), "size": (parts.offsets.norm(dim=-1) / size).numpy(),
    })  # fmt: skip
    return pd.concat([prompt, offsets], ignore_index=True)
