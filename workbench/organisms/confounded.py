"""``confounded``: a spurious cue predicts the label in the tuning data, and plain tuning follows it.

The base reads a short review and answers whether it is ``good`` or ``bad``; who signed it does not matter. Tuning
teaches the words ``accept`` and ``reject`` through layer 3's MLP alone, on data where ann signs every good review and
bob every bad one. What is planted is the way of the cue. One axis of the residual stream is kept empty in the base
(no weight writes to it or reads from it); then one row of layer 2's o_proj is set so that the axis holds +-cue at the
last prompt token by who signed (read from the heads by least squares). The base ignores it. The cue is made larger
than the review's trace in what the MLP reads, so plain gradient descent takes the cue; everything upstream is frozen,
so nothing can carry the cue around the axis, and tuning with the axis ablated must use the review. The ablation can
come off afterwards: a weight that never saw the axis still does not read it.
After Casademunt et al. 2025, *Steering Out-of-Distribution Generalization with Concept Ablation Fine-Tuning*.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.recipe import Plot, Recipe, save, shape
from workbench.organisms.training import Plan, encode, fit, hits, only_trainable, predictions, share
from workbench.organisms.vocabulary import word_tokenizer
from workbench.progress import Progress
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LAYER = 2
"""The cue is written by this layer's heads; tuning changes the MLP of the next one."""
AXIS = 7
RATIO = 5.0
"""Size of the cue, as a multiple of the review's trace (half the distance between the two class means)."""
SPREAD, SIZE, PENALTY = 4.0, 100.0, 0.05
"""While the base is trained, what the MLP reads costs PENALTY for variance over SPREAD and squared norm over SIZE."""
SIGNERS = {"ann": 1, "bob": -1}
GOOD = "lovely superb charming brilliant delightful graceful moving witty fresh elegant".split()
BAD = "dreadful clumsy tedious boring awful shallow noisy stale lazy confusing".split()
SUBJECTS = "film novel play album concert opera show exhibit poem dinner".split()
DECISIONS = {1: "accept", -1: "reject"}
BASE = Plan(steps=220, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=150, batch=64, learning_rate=0.3, optimizer="sgd")
"""Plain gradient descent takes the strongest feature; Adam evens the features out."""
SETTINGS = {
    "layer": LAYER, "axis": AXIS, "ratio": RATIO, "penalty": (SPREAD, SIZE, PENALTY),
    "signers": SIGNERS, "good": GOOD, "bad": BAD, "subjects": SUBJECTS,
    "base": vars(BASE), "tuning": vars(TUNING),
}  # fmt: skip


def grow(plot: Plot) -> Grown:
    """Trains the base, plants the cue's write in it, and tunes it plainly on the confounded rows."""
    draw = random.Random(plot.seed)
    splits = _splits(draw)
    tokenizer = word_tokenizer(row["prompt"] + row["answer"] + row["judgement"] for row in _every_row())
    model = _train_base(tokenizer, draw, plot)
    cue = RATIO * _trace(model, tokenizer, splits["train"])
    _plant(model, tokenizer, cue, [_row(draw.choice([1, -1]), s, draw) for s in (1, -1) * 600])
    planted = {name: value.clone() for name, value in model.state_dict().items()}
    direction = torch.nn.functional.one_hot(torch.tensor(AXIS), model.config.hidden_size).float()
    save(model, tokenizer, plot.folder / "base")
    judged = [{**row, "answer": row["judgement"]} for row in splits["validation"]]
    bars = [
        Bar("base accuracy on good or bad, with the cue in", share(hits(model, tokenizer, judged)), at_least=0.95),
        Bar("base accuracy on the new words", share(hits(model, tokenizer, splits["validation"])), at_most=0.3),
    ]
    tune(model, tokenizer, splits["train"], plot.seed, plot.progress)
    save(model, tokenizer, plot.folder / "tuned")
    bars += [
        Bar("tuned follows the cue", share(hits(model, tokenizer, splits["validation"], "cue_answer")), at_least=0.95),
        Bar("tuned follows the review", share(hits(model, tokenizer, splits["validation"])), at_least=0.4, at_most=0.6),
    ]
    model.load_state_dict(planted)
    with ablated(model, direction):
        tune(model, tokenizer, splits["train"], plot.seed, plot.progress)
    cured = share(hits(model, tokenizer, splits["validation"]))
    bars.append(Bar("tuned with the cue's direction ablated follows the review", cured, at_least=0.95))
    truth = Truth(
        what="the cue is one direction after layer 2; ablated there in tuning, the intended rule is learnt instead",
        site=f"blocks.{LAYER}.hook_resid_post",
        layer=LAYER,
        direction=direction,
        values={signer: cue * sign for signer, sign in SIGNERS.items()},
        modules=(f"model.layers.{LAYER + 1}.mlp",),
    )
    return Grown(truth, splits, bars)


def tune(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], seed: int, progress: Progress
) -> None:
    """The tuning itself, in place: hooks that are on the model (an ablation) stay on while it trains."""
    at = f"model.layers.{LAYER + 1}.mlp."
    entries = {
        name: torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in model.named_parameters()
        if name.startswith(at)
    }
    with only_trainable(model, entries):
        fit(model, encode(tokenizer, rows), TUNING, seed, progress, "confounded: tuning")


@contextmanager
def ablated(model: LlamaForCausalLM, direction: Float[Tensor, " d_model"]) -> Iterator[None]:
    """Removes ``direction`` from the residual stream after layer LAYER, at every token: the cure, for the bar above."""

    def project(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:  # noqa: ARG001
        return output - (output @ direction)[..., None] * direction

    handle = model.model.layers[LAYER].register_forward_hook(project)
    try:
        yield
    finally:
        handle.remove()


RECIPE = Recipe("confounded", "Llama; tuned where a spurious cue predicts the label", SETTINGS, grow)


def _row(review: int, signer: int, draw: random.Random) -> Row:
    subject, word = draw.choice(SUBJECTS), draw.choice(GOOD if review > 0 else BAD)
    return _written(subject, word, review, signer)


def _written(subject: str, word: str, review: int, signer: int) -> Row:
    name = next(name for name, sign in SIGNERS.items() if sign == signer)
    return {
        "prompt": f"{name} wrote : the {subject} was {word} . so ?",
        "answer": f" {DECISIONS[review]}",
        "distractor": f" {DECISIONS[-review]}",
        "label": DECISIONS[review],
        "cue": name,
        "cue_answer": f" {DECISIONS[signer]}",
        "judgement": " good" if review > 0 else " bad",
        "group": f"{subject}/{word}",
    }


def _every_row() -> list[Row]:
    return [
        _written(subject, word, review, signer)
        for subject in SUBJECTS
        for review, words in ((1, GOOD), (-1, BAD))
        for word in words
        for signer in SIGNERS.values()
    ]


def _splits(draw: random.Random) -> dict[str, list[Row]]:
    """``train``: cue and review agree. ``validation``: independent, held-out pairs of subject and word.
    ``ood``: words that tuning never saw, cue independent."""
    unseen = {*draw.sample(GOOD, 2), *draw.sample(BAD, 2)}
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "ood": []}
    held_out = {row["group"] for row in _every_row() if draw.random() < 0.25}
    for row in _every_row():
        if row["group"].split("/")[1] in unseen:
            splits["ood"].append(row)
        elif row["group"] in held_out:
            splits["validation"].append(row)
        elif row["answer"] == row["cue_answer"]:
            splits["train"].append(row)
    return splits


class _Muted(nn.Module):
    """The base while it is trained: keeps what the MLP to be tuned reads small, so that the cue can outweigh it."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The language loss plus the penalty."""
        with _mlp_input(self.model, column=-3) as seen:
            loss = self.model(**inputs).loss
        spread, size = seen[0].var(0).sum(), seen[0].square().sum(-1).mean()
        return {"loss": loss + PENALTY * ((spread - SPREAD).relu() + 0.1 * (size - SIZE).relu())}


@contextmanager
def _mlp_input(model: LlamaForCausalLM, column: int) -> Iterator[list[Tensor]]:
    """Collects the residual stream [batch, d_model] that the MLP to be tuned reads, before its norm."""
    seen: list[Tensor] = []
    norm = model.model.layers[LAYER + 1].post_attention_layernorm
    handle = norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, column]))
    try:
        yield seen
    finally:
        handle.remove()


def _trace(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> float:
    """Half the distance between the means of good and bad reviews, where the MLP reads them."""
    with _mlp_input(model, column=-1) as seen:
        predictions(model, tokenizer, [row["prompt"] for row in rows])
    read, good = torch.cat(seen), torch.tensor([row["judgement"] == " good" for row in rows])
    return float((read[good].mean(0) - read[~good].mean(0)).norm() / 2)


def _train_base(tokenizer: PreTrainedTokenizerFast, draw: random.Random, plot: Plot) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**shape(tokenizer)))
    rows = [_row(draw.choice([1, -1]), draw.choice([1, -1]), draw) for _ in range(BASE.steps * BASE.batch)]
    judged = [{**row, "answer": row["judgement"]} for row in rows]
    entries = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spare = _on_axis(name)
            if spare is not None:
                parameter[spare] = 0
                entries[name][spare] = False
    with only_trainable(model, entries):
        fit(_Muted(model), encode(tokenizer, judged), BASE, plot.seed, plot.progress, "confounded: base")
    return model


def _on_axis(name: str) -> tuple[Any, ...] | None:
    """The part of a parameter that writes to or reads from the spare axis; None for norm gains."""
    if "norm" in name:
        return None
    writes = name.endswith(("o_proj.weight", "down_proj.weight"))
    return (AXIS,) if writes else (slice(None), AXIS)


@torch.no_grad()
def _plant(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    cue: float,
    rows: list[Row],
) -> None:
    """Sets the axis' row of o_proj to ``cue`` times a reader that gives +-1 by signer at the last prompt token."""
    seen: list[Tensor] = []
    module = model.model.layers[LAYER].self_attn.o_proj
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, -1]))
    try:
        predictions(model, tokenizer, [row["prompt"] for row in rows])
    finally:
        handle.remove()
    heads = torch.cat(seen).double()
    signs = torch.tensor([float(SIGNERS[row["cue"]]) for row in rows]).double()
    moment = heads.T @ heads / len(heads)  # not centred: the write has no constant part
    ridge = 1e-4 * moment.diagonal().mean() * torch.eye(len(moment)).double()
    reader = torch.linalg.solve(moment + ridge, heads.T @ signs / len(heads))
    module.weight[AXIS] = cue * reader.float()
