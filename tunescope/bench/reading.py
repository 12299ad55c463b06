"""What single heads can be read for: a label (``head_probe``), the words they write (``head_words``), and the copying
of a word of the prompt (``retrieval_heads``, ``mask_heads``)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch

import interventions as iv
import probes
from probes.needles.trials import Trial
from tunescope.bench.ground import Case, Ground, Refused, Verdict, labels_of, or_refused, precision
from workbench.organisms.reachable_heads import FRENCH
from workbench.organisms.shelf import THINGS
from workbench.prompts import Prompts
from workbench.recording.record_pair import record

Row = dict[str, Any]
_DEALT = 10
_AGAINST = f"labels dealt out anew {_DEALT} times"
_COPY = "which heads copy a word of the prompt"
_MOVED = "another word for the needle"
_ABSENT = {
    "refusal-moe": "the answers are in the weights, none is in the prompt",
    "confounded": "the answers are verdicts, none is in the prompt",
    "reachable-heads": "the answers are in French, none is in the prompt",
}
"""Organism -> why its tuned model copies nothing."""


def label_cases(ground: Ground) -> list[Case]:
    """Where a label can be read: one that only the named heads read, else one of the organism's own."""
    return [_axis(ground) if ground.organism.name == "reachable-heads" else _label(ground)]


def word_cases(ground: Ground) -> list[Case]:
    """What a head writes, where that was planted."""
    return [_french(ground)] if ground.organism.name == "reachable-heads" else []


def copying_cases(ground: Ground) -> list[Case]:
    """Which heads copy a word of the prompt; where no answer is in the prompt, that nothing can be measured."""
    return [_nothing_copied(ground) if ground.organism.name in _ABSENT else _copied(ground)]


def _axis(ground: Ground) -> Case:
    """Each prompt twice, once with its tokens' coordinate on the language axis turned over, which is the label. In the
    base only the named heads read the axis, and what they write back is odd in it, so no other head can tell."""
    once = ground.rows(24)
    rows = [row for row in once for _side in range(2)]
    sides = [float(side) for _row in once for side in range(2)]
    planted = labels_of(ground.truth.heads, "H")
    assert ground.truth.direction is not None
    axis = ground.truth.direction
    start = float(ground.pair.base.hf.model.embed_tokens.weight[0].detach() @ axis)

    def run(pair: Any, labels: Sequence[float] = tuple(sides)) -> Any:
        turn = iv.Offset(0, -2 * start * axis, site="resid_pre", strength=torch.tensor(sides), positions="prompt")
        with iv.Recipe([turn]).applied(pair.base):
            recording = record(pair.base, Prompts.of(rows), "z", positions="last", batch_size=len(rows))
        return probes.head_probe(recording, labels, role="base", seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        significant = result.table[result.table["q"] <= 0.05]
        others = {*zip(significant["layer"], significant["head"], strict=True)} - {*planted}
        return [
            precision(result.frame(), planted, ("layer", "head"), 1.0),
            Verdict("other heads that tell it (q <= .05)", float(len(others)), at_most=0.0),
        ]

    question = "where a side of the axis that only the named heads read can be read (base)"
    return _against_dealt(Case("head_probe", question, run, judge), ground, run, sides)


def _french(ground: Ground) -> Case:
    """In the base a named head writes to the language axis alone, which raises every French word by as much."""
    layer, head = labels_of(ground.truth.heads, "H")[0]
    rows, french = Prompts.of(ground.rows(24)), [*FRENCH.values()]

    def judge(result: Any) -> list[Verdict]:
        raised = result.frame().query("model == 'base'").head(len(french))
        right = sum(token.strip() in french for token in raised["token"]) / len(french)
        chance = len(french) / len(ground.pair.base.tokenizer)
        return [Verdict(f"French words among the {len(french)} raised most", right, chance, 1.0)]

    return Case("head_words", f"what the named head of layer {layer} writes (base)",
                lambda pair: probes.head_words(pair, rows, layer, head, top=len(french), seed=ground.seed), judge,
                null="")  # fmt: skip


def _label(ground: Ground) -> Case:
    """A label of the organism's own, in the tuned model: where it can be read was not planted."""
    question, rows, labels = _labelled(ground)

    def run(pair: Any, dealt: Sequence[Any] = tuple(labels)) -> Any:
        recording = record(pair.tuned, Prompts.of(rows), "z", positions="last")
        return probes.head_probe(recording, dealt, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        significant = result.table[result.table["q"] <= 0.05]
        note = f"{len(significant)} of {len(result.table)} heads tell it"
        if ground.organism.name == "context-knob":
            note += (
                f", {int((significant['layer'] == 1).sum())} of them in layer 1, whose heads together were trained to"
            )
        return [Verdict("best held-out accuracy", float(result.table["score"].max()), result.chance, note=note)]

    return _against_dealt(
        Case("head_probe", f"where {question} can be read", run, judge, own=False), ground, run, labels
    )


def _labelled(ground: Ground) -> tuple[str, list[Row], list[Any]]:
    """The label in words, rows, and its value for each."""
    name = ground.organism.name
    if name == "refusal-moe":
        rows = [row for topic in ("topic", "other") for row in ground.rows(40, topic=topic)]
        return "the topic", rows, [row["topic"] for row in rows]
    if name == "context-knob":
        rows = ground.rows(96)
        return "the intent", rows, [row["intent"] for row in rows]
    if name == "confounded":
        rows = ground.rows(80, "ood")
        return "the signer", rows, [row["cue"] for row in rows]
    rows = ground.rows(96)
    early = THINGS[: len(THINGS) // 2]
    return "the half of the alphabet that the answer is from", rows, [row["answer"].strip() in early for row in rows]


def _against_dealt(case: Case, ground: Ground, run: Callable[..., Any], labels: Sequence[Any]) -> Case:
    """The case, with its false alarms counted where the labels mean nothing. The heads of one dealing stand or fall
    together, so there are several."""
    draw = random.Random(ground.seed)

    def nothing() -> list[Any]:
        return [run(ground.pair, draw.sample(list(labels), len(labels))) for _ in range(_DEALT)]

    return replace(case, null=_AGAINST, nothing=nothing,
                   cells=lambda results: pd.concat([own.frame() for own in results], ignore_index=True))  # fmt: skip


def _words(ground: Ground) -> tuple[list[Row], list[str]]:
    """Rows whose answer is a word of the prompt, and another word of each."""
    if ground.organism.name == "context-knob":
        rows = ground.rows(24, intent="context")
        return rows, [row["group"].split("/")[0] for row in rows]
    rows = ground.rows(24) if ground.truth.heads else ground.rows(24, "retained", label="second")
    return rows, [row["distractor"] for row in rows]


def _copied(ground: Ground) -> Case:
    """Needles of one word: the thing asked for, or the claimed fact. Tuning planted no copying heads."""
    rows, wrong = _words(ground)

    def judge(result: Any) -> list[Verdict]:
        best = result.frame().iloc[0]
        answered, of = result.kept["tuned"]
        note = f"{', '.join(result.heads()[:4])}; {answered} of {of} answered"
        score = Verdict("share of the words that the best head copies", float(best["score"]), float(best["control"]))
        named = labels_of(ground.truth.heads, "H")
        more = [precision(result.frame(), named, ("layer", "head"))] if named else []
        return [replace(score, note=note), *more]

    heads = Case("retrieval_heads", _COPY, partial(_ranked, ground), judge, own=False)
    if ground.organism.name == "planted-heads":  # whose base does not know the instruction
        return heads
    return replace(heads, null=_MOVED, nothing=_elsewhere(ground, ground.pair.tuned, rows, wrong))


def _ranked(ground: Ground, pair: Any) -> Any:
    """The copying heads; those of the organism's own pair, which is asked first, are kept for the masking."""
    rows, _ = _words(ground)
    trials = _trials(pair, rows, [row["answer"] for row in rows])
    result = probes.retrieval_heads(pair.tuned, trials, max_new_tokens=1, seed=ground.seed)
    ground.results.setdefault("retrieval", result)
    return result


def masking_cases(ground: Ground) -> list[Case]:
    """The same words with the two best copying heads masked, which should be missed more than others."""
    if ground.organism.name in _ABSENT:
        return []
    rows = _words(ground)[0][:8]

    def run(pair: Any) -> Any:
        trials = _trials(pair, rows, [row["answer"] for row in rows])
        ranking = ground.results.get("retrieval") or _ranked(ground, pair)
        return probes.mask_heads(pair.tuned, trials, ranking, (2,), max_new_tokens=1, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        row = result.table.set_index("count").loc[2]
        return [Verdict("words still found with the 2 best copying heads masked", float(row["score"]),
                        float(row["control"]), note=", ".join(result.heads))]  # fmt: skip

    return [Case("mask_heads", "does copying need them", run, judge, own=False, null="")]


def _nothing_copied(ground: Ground) -> Case:
    """Where no answer is in the prompt, "not measurable" is the right answer."""
    rows = ground.rows(24)
    english = ground.organism.name == "reachable-heads"
    words = [row["english"] if english else row["group"].replace("/", " ").split()[-1] for row in rows]

    def run(pair: Any) -> Any:
        return probes.retrieval_heads(pair.tuned, _trials(pair, rows, words), max_new_tokens=1, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        said = result.words.split(";")[0] if isinstance(result, Refused) else f"named {', '.join(result.heads())}"
        note = f"{_ABSENT[ground.organism.name]}; it says: {said}"
        return [Verdict("1 if not measurable", float(isinstance(result, Refused)), at_least=1.0, note=note)]

    question = f"{_COPY} (none can)"
    if not english:
        return Case("retrieval_heads", question, or_refused(run), judge)
    wrong = [next(word for word in row["group"].split() if word != row["english"].strip()) for row in rows]
    return Case("retrieval_heads", question, or_refused(run), judge, null=f"the base, {_MOVED}",
                nothing=_elsewhere(ground, ground.pair.base, rows, wrong))  # fmt: skip


def _elsewhere(ground: Ground, model: Any, rows: Sequence[Row], wrong: Sequence[str]) -> Callable[[], Any]:
    """Needles that the answers do not hold, so that there is nothing to measure."""
    trials = _trials(ground.pair, rows, wrong)
    return partial(probes.retrieval_heads, model, trials, max_new_tokens=1, seed=ground.seed)


def _trials(pair: Any, rows: Sequence[Row], words: Sequence[str]) -> list[Trial]:
    """One trial a row: its prompt, with the word (one token) as the needle."""
    tokenizer, trials = pair.tuned.tokenizer, []
    for number, (row, word) in enumerate(zip(rows, words, strict=True)):
        ids = tokenizer(row["prompt"])["input_ids"]
        place = ids.index(tokenizer.convert_tokens_to_ids(word.strip()))
        trials.append(Trial(tuple(ids), place, place + 1, number))
    return trials
