"""By which way a variable travels: paths, circuits and masks of heads, on every organism.

What is planted: in ``context-knob`` only what layer 1's heads hand to its o_proj tells the tuned model the intent; in
``confounded`` only layer 2's heads write the cue's axis; in ``planted-heads`` only the named heads differ from the
base, which does not know the instruction; in ``reachable-heads`` only the named heads write the language, and in the
base they know of no word. Where only MLPs were tuned, no head is planted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

import probes
from tunescope.bench.contrasts import asked_otherwise, exchanged, moved, opposite, shuffled_answers
from tunescope.bench.ground import Case, Ground, Verdict, labels_of
from workbench.prompts import Prompts

Heads = list[tuple[int, int]]
_HANDED = "heads that are handed the change send it too"
_IN_PART = "o_proj was tuned too, so z is a part of the change; other heads can only rescale the axis"
_NONE = "no head: none gains its price by itself, though all together move every answer"
_TRACES = "heads before it hold traces of the signer, which the tuned MLP may read too"
_CARRIER = {"context-knob": 1, "confounded": 2}
"""Organism -> the layer whose heads alone carry the planted variable to the last token."""
_KNOWN_WAY = {
    "context-knob": "which heads tell the later ones the intent",
    "confounded": "which heads tell the MLPs and the logits the signer",
}


def path_cases(ground: Ground) -> list[Case]:
    """From which heads the change reaches the answer, and by which the planted variable does."""
    return [_handed_over(ground), *([_planted_way(ground)] if ground.organism.name in _CARRIER else [])]


def cmap_cases(ground: Ground) -> list[Case]:
    """The named heads together, where z of nothing else was tuned."""
    return [_moved_at_once(ground)] if ground.organism.name == "planted-heads" else []


def circuit_cases(ground: Ground) -> list[Case]:
    """What is left without the planted heads; where none are planted, what the best ones alone do."""
    none = ground.organism.name in ("two-skills", "refusal-moe")
    return [_circuit_found(ground) if none else _circuit_without(ground)]


def _every_head(ground: Ground) -> Heads:
    model = ground.pair.base
    return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]


def planted_heads(ground: Ground) -> Heads:
    """The heads that carry what was planted; none where only MLPs were tuned."""
    layer = _CARRIER.get(ground.organism.name)
    named = labels_of(ground.truth.heads, "H")
    return named if layer is None else [head for head in _every_head(ground) if head[0] == layer]


def _labels(heads: Sequence[tuple[int, int]]) -> list[str]:
    return [f"L{layer}H{head}" for layer, head in heads]


def _share(result: Any, heads: Heads) -> float:
    """The share of the summed sizes of the effects that some heads have."""
    size = result.table["score"].abs().to_numpy()
    own = [place in heads for place in _places(result.table)]
    return float(size[own].sum() / size.sum()) if size.any() else math.nan


def _places(table: pd.DataFrame) -> Heads:
    return [(int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)]


def _margin(share: float, prompts: int) -> float:
    """The most that a model which answers a share right gets right of some prompts (95 % of such draws)."""
    return round(share + 1.645 * math.sqrt(share * (1 - share) / prompts), 2)


def _handed_over(ground: Ground) -> Case:
    """Senders say in the base what they say in the tuned model. A head before the first tuned weight, or in its layer
    and not tuned itself, says the same in both: no path of the change can start in it."""
    named, first = labels_of(ground.truth.heads, "H"), ground.first_layer
    same = [head for head in _every_head(ground) if head[0] <= first and head not in named]
    rows = ground.rows(32, topic="topic") if ground.organism.name == "refusal-moe" else ground.rows(32)

    def run(pair: Any) -> Any:
        return probes.path_patching(pair, Prompts.of(rows), source="tuned", target="base", metric="logit_diff",
                                    only_correct=False, seed=ground.seed)  # fmt: skip

    def judge(result: Any) -> list[Verdict]:
        silent = result.table["score"][[place in same for place in _places(result.table)]].eq(0).all()
        verdicts = [Verdict("1 if heads that say the same in both have no effect", float(silent), at_least=1.0,
                         note=f"{len(same)} of {len(result.table)} heads")]  # fmt: skip
        if named:
            note = _IN_PART if ground.organism.name == "reachable-heads" else _HANDED
            chance = len(named) / len(result.table)
            verdicts.append(
                Verdict("share of the effect from the named heads", _share(result, named), chance, note=note)
            )
        return verdicts

    return Case("path_patching, tuned into base", "from which heads the change reaches the answer", run, judge)


def _planted_way(ground: Ground) -> Case:
    """Prompts that differ in the planted variable alone: its paths start in one layer."""
    layer = _CARRIER[ground.organism.name]
    rows, planted = opposite(ground, 48), planted_heads(ground)
    later = [head for head in _every_head(ground) if head[0] > layer]
    receivers = _labels(later) if ground.organism.name == "context-knob" else "logits"
    prompts_of_run = Prompts.of(rows)

    def run(pair: Any, prompts: Prompts = prompts_of_run) -> Any:
        return probes.path_patching(pair, prompts, receivers, metric="logit_diff", only_correct=False, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        return [Verdict(f"share of the effect from layer {layer}", _share(result, planted),
                        len(planted) / len(result.table), 0.9)]  # fmt: skip

    return Case("path_patching", _KNOWN_WAY[ground.organism.name], run, judge, null="answers exchanged at random",
                nothing=lambda: run(ground.pair, exchanged(rows, ground.seed)))  # fmt: skip


def _moved_at_once(ground: Ground) -> Case:
    """z of all named heads from one model to the other: nothing else differs, so the behaviour must go with it."""
    rows = Prompts.of(ground.rows(48))

    def judge(result: Any) -> list[Verdict]:
        return [
            Verdict(
                f"share of the way, {row.direction}", (row.score - row.alone) / (row.other - row.alone),
                (row.control - row.alone) / (row.other - row.alone), 1.0,
            )
            for row in result.table.itertuples()
        ]  # fmt: skip

    return Case("cmap", "do the named heads carry all of the change",
                lambda pair: probes.cmap(pair, rows, list(ground.truth.heads), seed=ground.seed), judge)  # fmt: skip


def _circuit_without(ground: Ground) -> Case:
    """All heads but the planted ones, which say their mean over prompts that do not tell the variable."""
    name, planted = ground.organism.name, planted_heads(ground)
    labels = _labels([head for head in _every_head(ground) if head not in planted])
    reads = name == "reachable-heads"
    if reads:
        rows = [{**row, "answer": row["english"], "distractor": row["answer"]} for row in ground.rows(48)]
    else:
        rows = opposite(ground, 48) if name in _CARRIER else ground.rows(48)
    reference = ground.rows(48, "retained") if name == "planted-heads" else rows

    def run(pair: Any) -> Any:
        return probes.circuit(pair.base if reads else pair.tuned, Prompts.of(rows), labels, parts=0,
                              reference=Prompts.of(reference), seed=ground.seed)  # fmt: skip

    def judge(result: Any) -> list[Verdict]:
        row = result.table.iloc[0]
        chance = float(row["control"] * row["full"])
        if reads:
            return [
                Verdict("accuracy without the named heads, which know no word", float(row["circuit"]), chance, 0.95)
            ]
        # the base answers at most 0.3 of the unknown instruction (its own bar); a constant answer is right in half
        bar = _margin(0.3 if name == "planted-heads" else 0.5, len(rows))
        return [Verdict(f"accuracy without the {len(planted)} planted heads", float(row["circuit"]), chance,
                        at_most=bar, note=f"with all heads {row['full']:.2f}")]  # fmt: skip

    return Case("circuit", "which heads the answer needs" + (" (base)" if reads else ""), run, judge,
                null="" if reads else "base against base")  # fmt: skip


def _circuit_found(ground: Ground) -> Case:
    """No head was tuned: the six that path patching names, alone."""
    rows = Prompts.of(asked_otherwise(ground, 32))
    both = Prompts.of([*rows, *rows.contrasts])  # a mean over one answer alone would give it away

    def run(pair: Any) -> Any:
        senders = probes.path_patching(pair, rows, metric="logit_diff", only_correct=False, seed=ground.seed)
        return probes.circuit(pair.tuned, rows, senders.best(6), reference=both, parts=0, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        row = result.table.iloc[0]
        return [Verdict("faithfulness of the 6 heads that path patching names", float(row["score"]),
                        float(row["control"]), note=f"{', '.join(next(iter(result.heads.values())))}")]  # fmt: skip

    return Case("circuit", "which heads suffice", run, judge, own=False)


def mask_cases(ground: Ground) -> list[Case]:
    """Component masking, with prices of a head that show beside logits of this size."""
    variable, rows = moved(ground, 64)
    name, planted = ground.organism.name, planted_heads(ground)
    reads = name == "reachable-heads"
    prompts_of_run = Prompts.of(rows)

    def run(pair: Any, prompts: Prompts = prompts_of_run) -> Any:
        return probes.component_masking(
            pair.base if reads else pair.tuned, {variable: prompts}, penalties=(0.3, 1.0, 3.0), epochs=3, batch_size=8,
            seed=ground.seed,
        )  # fmt: skip

    def judge(result: Any) -> list[Verdict]:
        row, in_mask = result.table.iloc[0], labels_of(result.heads(variable), "H")
        exact = name in _CARRIER or reads
        verdicts = [Verdict(f"answers moved with {variable}", float(row["score"]), float(row["control"]),
                         0.9 if exact else math.nan, note=", ".join(_labels(in_mask)) or _NONE)]  # fmt: skip
        inside = sum(head in planted for head in in_mask) / max(1, len(in_mask))
        chance = len(planted) / len(_every_head(ground))
        if name in _CARRIER:
            bar, note = (0.9, "") if name == "context-knob" else (math.nan, _TRACES)
            verdicts.append(Verdict(f"share of the mask in layer {_CARRIER[name]}", inside, chance, bar, note=note))
        elif planted:
            most = 0.0 if reads else math.nan
            verdicts.append(Verdict("share of the mask in the named heads", inside, chance, at_most=most))
        return verdicts

    question = f"which heads carry {variable} to the last token" + (" (base)" if reads else "")
    if not reads:
        return [Case("component_masking", question, run, judge, own=name in _CARRIER)]
    return [Case("component_masking", question, run, judge, null="targets dealt out anew",
                 nothing=lambda: run(ground.pair, shuffled_answers(rows, ground.seed)))]  # fmt: skip
