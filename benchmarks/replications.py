"""Headline effects of five papers in miniature, each beside its control: a run, and docs/replications.md from it.

python benchmarks/replications.py            measure, keep a run in ./runs, write docs/replications.md
python benchmarks/replications.py RUN        write docs/replications.md from a run that is there
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

import interventions as iv
import probes
from interventions.training.ablated import random_directions
from tunescope.demo.chapter import Chapter, Settings
from tunescope.demo.comparing import Behaviour
from tunescope.demo.context import context_chapter
from tunescope.demo.experts import experts_chapter
from tunescope.demo.recorded import marked, mean_difference, rows_at
from workbench import organisms, runs
from workbench.behaviour.scores import next_token_logits, score_answers
from workbench.models.pair import load_one, load_pair
from workbench.progress import Silent
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.stats.bootstrap import mean_interval
from workbench.stats.shares import share_interval
from workbench.tables import with_intervals

DOC = Path(__file__).resolve().parents[1] / "docs" / "replications.md"
DRAWS = 10
CAFT_TUNING = iv.Schedule(epochs=96, batch_size=64, learning_rate=3e-3)
LOFIT_TUNING = iv.Schedule(epochs=6, batch_size=16, learning_rate=5e-2)
PAPERS = {
    "graft": (
        "A sparse graft recovers a skill",
        "Panigrahi et al. 2023, Task-Specific Skill Localization in Fine-tuned Language Models",
        "Organism two-skills. For each skill a mask is fitted on 60 % of 400 training prompts; the masked tuned "
        "weights are put into the base and judged on the other 40 %. Control: random masks with as many "
        "entries per tensor.",
    ),
    "lofit": (
        "Offsets on selected heads beat offsets on random heads",
        "Yin, Ye & Durrett 2024, LoFiT: Localized Fine-tuning on LLM Representations",
        "Heads of the base are ranked by learned scalings, then offsets are trained on the first few, the model "
        "frozen, for three tasks: answer in French (reachable-heads: by construction only three heads can bring it, "
        "and a constant is enough), answer from the context (context-knob: many heads can), and a new instruction "
        "(planted-heads), which no offset can teach: an offset is one constant per head, and the instruction asks for "
        "a look-up, so a head would have to attend elsewhere. Control: the same training on random other heads.",
    ),
    "knob": (
        "The knob found in the tuned model works in the base",
        "Minder, Du et al. 2024, Controllable Context Sensitivity and the Knob Behind It",
        "Organism context-knob. The direction is trained on the tuned model and set to a constant in the base, on "
        "prompts that ask for the opposite. Control: random directions, moved just as far.",
    ),
    "experts": (
        "Switching few experts off flips refusal",
        "Dahlke et al. 2025, Mixture of Tunable Experts",
        "Organism refusal-moe. Experts are ranked by how much more the tuned model uses them for the topic than the "
        "base, or by how far their weights moved. Control: random experts of the same layers, about as often used.",
    ),
    "caft": (
        "Ablating a concept in tuning prevents the spurious generalization",
        "Casademunt et al. 2025, Steering Out-of-Distribution Generalization with Concept Ablation Fine-Tuning",
        "Organism confounded, tuned here from its base. The direction is the difference of means by signer in the "
        "base, after the layer before the one that tuning changes; trained with it ablated, run without. Control: the "
        "same training with random directions ablated. 'without' is plain tuning.",
    ),
}  # fmt: skip
"""Key -> (effect, paper, what was done)."""


def line(
    effect: str, organism: str, measured: str, without: float, with_it: Sequence[float], control: Sequence[float],
    *, n: int, note: str = "", wanted: str = "more",
) -> dict[str, Any]:  # fmt: skip
    """One measurement; ``with_it`` and ``control`` are (share, low, high). It replicated when the two intervals are
    apart on the ``wanted`` side, and the effect is away from ``without`` on the same side."""
    apart = with_it[1] > control[2] if wanted == "more" else with_it[2] < control[1]
    moved = with_it[0] > without if wanted == "more" else with_it[0] < without
    return {
        "effect": effect, "organism": organism, "measured": measured, "without": without,
        "with it": with_it[0], "with it_low": with_it[1], "with it_high": with_it[2],
        "control": control[0], "control_low": control[1], "control_high": control[2], "draws": DRAWS, "n": n,
        "replicated": bool(apart and moved), "note": note,
    }  # fmt: skip


def right(model: Any, rows: Prompts, recipe: Any = None) -> np.ndarray:
    """[prompt] whether the next token begins the row's answer."""
    return score_answers(next_token_logits(model, rows, recipe), rows, model.tokenizer, ["accuracy"])[
        "accuracy"
    ].to_numpy()


def interval(values: np.ndarray, rows: Prompts) -> tuple[float, float, float]:
    share = share_interval(values, clusters=rows.clusters)
    return share.estimate, share.low, share.high


def graft(seed: int) -> list[dict[str, Any]]:
    organism = organisms.build("two-skills", seed)
    pair = load_pair(organism.base, organism.tuned, device="cpu")
    lines = []
    for skill, planted in organism.truth.entries.items():
        rows = [row for row in organism.splits["train"] if row["label"] == skill][:400]
        shares = probes.graft(
            pair, rows, method="optimised", epochs=8, sparsity=0.02, sparsities=(1e-2, 1e-1), draws=DRAWS, seed=seed
        ).models.set_index("model")  # fmt: skip
        grafted, random = shares.loc["graft"], shares.loc[f"random ({DRAWS} draws)"]
        size = sum(int(mask.sum()) for mask in planted.values())
        lines.append(line(
            "graft", "two-skills", f"{skill}: answers right", float(shares.loc["base", "accuracy"]),
            [float(grafted[name]) for name in ("accuracy", "low", "high")],
            [float(random[name]) for name in ("accuracy", "low", "high")], n=int(grafted["n"]),
            note=f"{int(grafted['entries'])} entries grafted ({size} were planted); the tuned model without them "
            f"answers {shares.loc['complement', 'accuracy']:.0%} right, the entries that moved most "
            f"{shares.loc['movement only', 'accuracy']:.0%}",
        ))  # fmt: skip
    return lines


def lofit(seed: int) -> list[dict[str, Any]]:
    context = organisms.build("context-knob", seed)
    train, test = ([row for row in context.splits[split] if row["intent"] == "context"] for split in ("train", "ood"))
    shelf = organisms.build("planted-heads", seed)
    reach = organisms.build("reachable-heads", seed)
    return [
        _offsets("reachable-heads", "answers in French, and right", reach.base, reach.splits["train"][:400],
                 reach.splits["validation"], 3, seed, reach.truth.heads),
        _offsets("context-knob", "asked for context, answers from it", context.base, train[:200], test, 1, seed),
        _offsets("planted-heads", "third: answers right", shelf.base, shelf.splits["train"][:400],
                 shelf.splits["validation"], 3, seed),
    ]  # fmt: skip


def _offsets(
    organism: str, measured: str, base: Path, train: list[dict], test: list[dict], count: int, seed: int,
    planted: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    model, rows, held_out = load_one(base, device="cpu"), Prompts.of(train), Prompts.of(test)
    ranking = probes.head_selection(model, rows, heads=count, epochs=4, resamples=0, end=False, seed=seed).chosen
    every = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    others = [head for head in every if head not in ranking]
    rng = np.random.default_rng(seed)
    draws = [rng.choice(others, count, replace=False).tolist() for _ in range(DRAWS)]
    learned = [
        iv.train_offsets(model, rows, heads, end=False, schedule=LOFIT_TUNING).recipe for heads in (ranking, *draws)
    ]
    learned_right, *drawn = [right(model, held_out, recipe) for recipe in learned]
    shares = [float(drawn_right.mean()) for drawn_right in drawn]
    ahead = mean_interval(learned_right - np.mean(drawn, axis=0), clusters=held_out.clusters, seed=seed)
    named = f" ({len({*ranking} & {*planted})} of the {len(planted)} planted)" if planted else ""
    return line(
        "lofit", organism, measured, float(right(model, held_out).mean()), interval(learned_right, held_out),
        interval(np.mean(drawn, axis=0), held_out), n=len(held_out),
        note=f"offsets on {', '.join(ranking)}{named}; ahead of the mean of random heads by {ahead.estimate:.1%} "
        f"[{ahead.low:.1%}, {ahead.high:.1%}] of the prompts (paired bootstrap); single draws of random heads lie "
        f"between {min(shares):.0%} and {max(shares):.0%}",
    )  # fmt: skip


def knob(seed: int) -> list[dict[str, Any]]:
    chapter = context_chapter(organisms.build("context-knob", seed), Settings(seed=seed, draws=DRAWS), Silent())
    return _told(chapter, "knob", "in the base", "base")


def experts(seed: int) -> list[dict[str, Any]]:
    chapter = experts_chapter(organisms.build("refusal-moe", seed), Settings(seed=seed, draws=DRAWS), Silent())
    return _told(chapter, "experts", " off, by ", "tuned")


def _told(chapter: Chapter, effect: str, recipe: str, without: str) -> list[dict[str, Any]]:
    """The lines of a chapter whose recipe's name holds ``recipe``; questions that nothing should move are left out."""
    lines = []
    for _, row in chapter.behaviour[chapter.behaviour["recipe"].str.contains(recipe)].iterrows():
        if row["behaviour"] == "answers the rest right":
            continue
        steered, control = (
            [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")] for name in ("steered", "control")
        )
        lines.append(line(
            effect, chapter.organism, f"{row['behaviour']}: {row['recipe']}", float(row[without]), steered, control,
            n=int(row["n"]), wanted="less" if row["behaviour"].startswith("refuses") else "more",
        ))  # fmt: skip
    return lines


def caft(seed: int) -> list[dict[str, Any]]:
    organism = organisms.build("confounded", seed)
    pair = load_pair(organism.base, organism.tuned, device="cpu")
    moved = probes.weight_delta(pair).frame()
    changed = moved[moved["score"] > 0]
    layer = int(changed["layer"].min()) - 1
    recording = record(pair.base, Prompts.of(organism.splits["ood"]), ["resid_post"], layers=[layer], positions="last")
    signers = marked(organism.splits["ood"], "cue", "ann")
    direction = mean_difference(rows_at(recording, "base", layer), signers)
    train = Prompts.of(organism.splits["train"])
    review = Behaviour.of("review", organism.splits["validation"], "answer").prompts
    cue = Behaviour.of("cue", organism.splits["validation"], "cue_answer").prompts
    frames = [None, {layer: direction}, *(random_directions({layer: direction}, seed + n) for n in range(DRAWS))]
    names = [f"model.layers.{layer + 1}.{name}" for name in set(changed["module"])]
    accuracies = [_tuned(organism.base, names, train, frame, (review, cue)) for frame in frames]
    planted = organism.truth.direction
    assert planted is not None
    cosine = float(torch.nn.functional.cosine_similarity(direction, planted.float(), dim=0).abs())
    lines = []
    for place, (measured, rows, wanted) in enumerate(
        (("follows the review", review, "more"), ("follows the cue", cue, "less"))
    ):
        plain, ablated, *random = [by_frame[place] for by_frame in accuracies]
        lines.append(line(
            "caft", "confounded", measured, float(plain.mean()), interval(ablated, rows),
            interval(np.mean(random, axis=0), rows), n=len(rows), wanted=wanted,
            note=f"ablated after layer {layer}; |cosine| with the planted direction {cosine:.3f}",
        ))  # fmt: skip
    return lines


def _tuned(
    base: Path, modules: list[str], train: Prompts, ablation: Any, judged: Sequence[Prompts]
) -> list[np.ndarray]:
    """Fine-tune a fresh base, in these modules only, and judge it without any hook."""
    model = load_one(base, device="cpu")
    for name, parameter in model.hf.named_parameters():
        parameter.requires_grad_(any(name.startswith(module) for module in modules))
    iv.caft_finetune(model, train, ablation, end=False, schedule=CAFT_TUNING)
    return [right(model, rows) for rows in judged]


EFFECTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "graft": graft, "lofit": lofit, "knob": knob, "experts": experts, "caft": caft,
}  # fmt: skip


def measure(seed: int = 0) -> runs.Run:
    """Measure every effect and keep the table in a run (kind ``replications``)."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    lines = []
    for name, effect in EFFECTS.items():
        sys.stderr.write(f"{PAPERS[name][0]}\n")
        lines += effect(seed)
    run = runs.create(runs.default_home(), kind="replications", config={"seed": seed, "draws": DRAWS})
    if run.is_complete:
        run.reopen()
    with run:
        run.write_table("tables/replications", pd.DataFrame(lines))
        text = "\n\n".join(f"{title}. {paper}. {done}" for title, paper, done in PAPERS.values())
        run.write_json("sections", [{"title": "Replications", "text": text, "tables": ["replications"], "figures": []}])
    return run


def write_doc(run: runs.Run) -> None:
    """docs/replications.md from the run's table: every number and verdict in it is computed."""
    table = run.read_table("tables/replications")
    parts = [
        "# Replications in miniature", "",
        "Written by `python benchmarks/replications.py`; do not edit. The models are the organisms (four layers, width "
        "64, trained on a CPU), so this shows that the methods do here what the papers say they do, not how large "
        f"the effects are elsewhere. Seed {run.config['seed']}; shares of held-out prompts with 95 % intervals "
        f"(bootstrap over groups of prompts); controls are means over {run.config['draws']} random draws, with "
        "intervals over the same prompts; a single draw may still do as well as the effect, and where draws were "
        "looked at one by one a "
        "note gives their range. *Replicated* means that the effect's interval lies wholly beyond that of the mean "
        "control, and the effect beyond the value without it.", "",
        "| effect | replicated |", "|---|---|",
        *(f"| {_link(PAPERS[name][0])} | {_verdict(rows)} |" for name, rows in _by_effect(table)),
        "",
    ]  # fmt: skip
    for name, rows in _by_effect(table):
        title, paper, done = PAPERS[name]
        shown = with_intervals(rows[["organism", "measured", "without", "with it", "with it_low", "with it_high",
                                     "control", "control_low", "control_high", "n", "replicated"]])  # fmt: skip
        parts += [f"## {title}", "", f"{paper}.", "", done, "", *_markdown(shown), ""]
        notes = rows[rows["note"] != ""]
        parts += [f"- {row['organism']}, {row['measured']}: {row['note']}." for _, row in notes.iterrows()]
        parts += [""] if len(notes) else []
    DOC.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _by_effect(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(name, table[table["effect"] == name]) for name in PAPERS if (table["effect"] == name).any()]


def _verdict(rows: pd.DataFrame) -> str:
    count = int(rows["replicated"].sum())
    return "yes" if count == len(rows) else "no" if not count else f"{count} of {len(rows)} measurements"


def _link(title: str) -> str:
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _markdown(table: pd.DataFrame) -> list[str]:
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in table.itertuples(index=False)]
    return ["| " + " | ".join(row) + " |" for row in [list(table), ["---"] * len(table.columns), *rows]]


if __name__ == "__main__":
    done = runs.open(sys.argv[1]) if len(sys.argv) > 1 else measure()
    write_doc(done)
    sys.stderr.write(f"{done.path}\n{DOC}\n")
