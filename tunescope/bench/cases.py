"""Which probe is asked what on which organism, and what the right answer is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

import interventions as iv
import probes
from tunescope.bench.circuit_cases import circuit_cases, cmap_cases, mask_cases, path_cases, planted_heads
from tunescope.bench.ground import CAN, WHERE, Case, Ground, Verdict, inside, labels_of, precision
from tunescope.bench.reading import copying_cases, label_cases, masking_cases, word_cases
from workbench.behaviour.scores import next_token_logits, score_answers
from workbench.prompts import Prompt, Prompts
from workbench.recording.record_pair import record
from workbench.typing import Bool, Tensor

DRAWS = 10
_REFUSAL = "sorry"
_READ = "which direction carries it"
_NOT_PLANTED = "heads that are handed the change count too, so the planted heads are not its whole answer"
_OPPOSITE = "a mean shift misses what moves some prompts one way and others the opposite way"
_READ_OFF = "an adapter names the one tensor it changes, so it is read off rather than found"
_LABELLED = {"context-knob": (120, "train", "intent"), "confounded": (64, "ood", "cue")}
"""Organism -> rows, split, and the column whose direction was planted."""
_PATCHED: dict[str, list[tuple[Any, ...]]] = {
    "planted-heads": [("z", "target"), ("write", "target", "write"), ("z", "source"), ("write", "source", "write")],
    "context-knob": [("write", "target")], "reachable-heads": [("write", "target")],
}  # fmt: skip
"""Organism -> what of its planted heads is patched, on whose inputs, and in which variant."""
_GRAFTED = {
    "context-knob": ("the intents", 160), "refusal-moe": ("refusal", 10_000), "planted-heads": ("third", 300),
    "confounded": ("the cue", 160), "reachable-heads": ("french", 160),
}  # fmt: skip
"""Organism -> its skill, and how many rows show it."""


def _moved(ground: Ground) -> list[Case]:
    """The first layer whose activations tuning moved; where heads are planted in z, which heads' z."""

    def moved(pair: Any) -> Any:
        recording = record(pair, _rows(ground, 48), ["resid_post"], positions="all")
        return probes.activation_delta(recording, seed=ground.seed)

    def z_moved(pair: Any) -> Any:
        recording = record(pair, Prompts.of(ground.rows(48)), ["z"], positions="last")
        return probes.activation_delta(recording, seed=ground.seed)

    planted = labels_of(ground.truth.heads, "H")
    by_head = Case(
        "activation_delta, heads", "which heads' z moved", z_moved,
        lambda result: [precision(result.frame(), planted, ("layer", "head"))], own=False,
    )  # fmt: skip
    first = _first_layer(ground, "activation_delta", moved)
    return [first, by_head] if ground.organism.name == "planted-heads" else [first]


def _lens(ground: Ground) -> list[Case]:
    rows = _rows(ground, 48)
    run = lambda pair: probes.logit_lens(pair, rows, positions="all", seed=ground.seed)  # noqa: E731
    return [_first_layer(ground, "logit_lens", run)]


def _first_layer(ground: Ground, probe: str, run: Callable[[Any], Any]) -> Case:
    def judge(result: Any) -> list[Verdict]:
        significant = result.table.loc[result.table["q"] <= 0.05, "layer"]
        first = int(significant.min()) if len(significant) else None
        note = "" if first == ground.first_layer else f"named {'no layer' if first is None else f'layer {first}'}"
        signs = np.sign([*ground.truth.values.values()])
        note += f": {_OPPOSITE}" if note and len({*signs}) > 1 else ""
        return [Verdict("1 if found", float(first == ground.first_layer), 1 / len(result.table), note=note)]

    return Case(probe, f"first layer that tuning moved (planted: {ground.first_layer})", run, judge)


def _token_shift(ground: Ground) -> list[Case]:
    rows = _rows(ground, 48)[:16]
    return [
        Case(
            "token_shift", "which tokens changed",
            lambda pair: probes.token_shift(pair, rows, max_new_tokens=1, seed=ground.seed),
            lambda result: [Verdict("shifted tokens, share", float(result.frame()["score"].iloc[0]))], own=False,
        )
    ]  # fmt: skip


def _rows(ground: Ground, count: int) -> Prompts:
    """Rows of what was taught; of the refusing model, of the topic."""
    wanted = {"topic": "topic"} if ground.organism.name == "refusal-moe" else {}
    return Prompts.of(ground.rows(count, **wanted))


def _weights(ground: Ground) -> list[Case]:
    """The planted heads or experts; else the tensors that tuning changed, by their last names."""
    truth = ground.truth
    for kind, named in (("head", truth.heads), ("expert", truth.experts)):
        if named:
            return [
                _by_weight(kind, labels_of(named, kind[0].upper()), name) for name in ("", *ground.organism.variants)
            ]
    planted = [
        (int(layer), name)
        for layer, _, part in (module.split("layers.")[1].partition(".") for module in truth.modules)
        for name in ([f"mlp.{each}_proj" for each in ("gate", "up", "down")] if part == "mlp" else [part])
    ]

    def judge(result: Any) -> list[Verdict]:
        verdict = precision(result.frame(), planted, ("layer", "module"), 1.0)
        return [replace(verdict, note=_READ_OFF) if ground.organism.is_adapter else verdict]

    return [Case("weight_delta", f"{WHERE}: tensors", probes.weight_delta, judge)]


def _by_weight(kind: str, planted: Sequence[tuple[int, int]], variant: str) -> Case:
    return Case(
        "weight_delta", f"{WHERE}: {kind}s", probes.weight_delta,
        lambda result: [precision(result.frame(kind), planted, ("layer", kind), 1.0)],
        cells=lambda result: result.frame(kind), variant=variant,
    )  # fmt: skip


def _patched_heads(ground: Ground) -> list[Case]:
    name = ground.organism.name
    rows = Prompts.of(ground.rows(40 if name == "context-knob" else 48))
    return [_patched(ground, rows, planted_heads(ground), *handed) for handed in _PATCHED.get(name, [])]


def _patched(
    ground: Ground,
    rows: Prompts,
    planted: Sequence[tuple[int, int]],
    what: str,
    inputs: Literal["source", "target"],
    variant: str = "",
) -> Case:
    own = inputs == "target"
    probe = f"patching {what}, {'same inputs' if own else 'as it runs'}"

    def run(pair: Any) -> Any:
        return probes.patching(pair, rows, "heads", what=what, inputs=inputs, together=0, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        verdict = precision(result.frame(), planted, ("layer", "head"), 1.0 if own else np.nan)
        return [verdict if own else replace(verdict, note=_NOT_PLANTED)]

    return Case(probe, f"{WHERE}: heads" if own else "which heads carry the change", run, judge, own, variant=variant)


def _patched_modules(ground: Ground) -> list[Case]:
    """Into the base; with experts out of the tuned model, where each of the tuned sublayers is needed and none is
    enough."""
    out_of_tuned, rows = bool(ground.truth.experts), _rows(ground, 40)
    kind = "mlp_out" if "mlp" in ground.truth.modules[0] else "attn_out"
    planted = [(int(name.split("layers.")[1].split(".")[0]), kind) for name in ground.truth.modules]
    runs = ("base", "tuned") if out_of_tuned else ("tuned", "base")

    def run(pair: Any) -> Any:
        return probes.patching(
            pair, rows, ["attn_out", "mlp_out"], *runs, inputs="target", positions="last", seed=ground.seed
        )

    return [Case(
        f"patching sites{' out' if out_of_tuned else ''}, same inputs", f"{WHERE}: sublayers at the last token", run,
        lambda result: [precision(result.frame(), planted, ("layer", "module"), 1.0)],
    )]  # fmt: skip


def _cosine(direction: Tensor, ground: Ground) -> tuple[float, float]:
    """|cos| with the planted direction, and what a random direction has on average."""
    assert ground.truth.direction is not None
    planted = ground.truth.direction.float()
    cosine = float(torch.nn.functional.cosine_similarity(direction.float().flatten(), planted, dim=0).abs())
    return cosine, float(np.sqrt(2 / (np.pi * len(planted))))


def _concepts(ground: Ground) -> list[Case]:
    if ground.organism.name not in _LABELLED:
        return []
    count, split, label = _LABELLED[ground.organism.name]
    labelled, layer = ground.rows(count, split), int(ground.truth.layer or 0)
    rows, labels = Prompts.of(labelled), [row[label] for row in labelled]

    def run(pair: Any) -> Any:
        recording = record(pair, rows, "resid_post", layers=[layer], positions="last")
        return probes.concept_directions(recording, "labels-mean", labels=labels, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        cosine, chance = _cosine(result.directions[0], ground)
        return [Verdict(f"|cos| with the planted direction, layer {layer}", cosine, chance, at_least=0.9)]

    return [Case("concept_directions", _READ, run, judge)]


def _selection(ground: Ground) -> list[Case]:
    planted, own = labels_of(ground.truth.heads, "H"), ground.organism.name == "reachable-heads"
    rows = Prompts.of(ground.rows(300 if own else 240))

    def run(pair: Any) -> Any:
        return probes.head_selection(pair, rows, heads=len(planted), epochs=4, resamples=0, end=False, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        verdict = precision(result.frame(), planted, ("layer", "head"), 1.0 if own else np.nan)
        note = "" if own else "the base's heads that could carry the task need not be those that tuning changed"
        return [replace(verdict, note=note)]

    return [Case("head_selection", f"{CAN}: heads of the base", run, judge, own, null="")] if planted else []


def _grafts(ground: Ground) -> list[Case]:
    name = ground.organism.name
    if name not in _GRAFTED:  # two skills, whose grafts are compared afterwards
        return [
            _graft(ground, Prompts.of(ground.rows(400, label=skill)), skill, True) for skill in ground.truth.entries
        ]
    skill, count = _GRAFTED[name]
    return [_graft(ground, Prompts.of(ground.rows(count)), skill, False)]


def _graft(ground: Ground, rows: Prompts, skill: str, bars: bool) -> Case:
    planted = ground.truth.entries.get(skill, {})
    size = sum(int(mask.sum()) for mask in planted.values())

    def run(pair: Any) -> Any:
        epochs = 20 if bars else 8
        graft = probes.graft(
            pair, rows, epochs=epochs, sparsity=0.02, sparsities=(1e-2,), draws=DRAWS, seed=ground.seed
        )
        ground.results.setdefault(skill, graft)  # of the organism's own pair, which is asked first
        return graft

    def judge(result: Any) -> Iterator[Verdict]:
        recovered = result.of("graft") / result.of("tuned")
        random = result.of(f"random ({DRAWS} draws)") / result.of("tuned")
        floor, ceiling = (0.95, 0.02) if bars else (np.nan, np.nan)
        yield Verdict(f"{skill}: tuned accuracy recovered", recovered, random, at_least=floor)
        within = sum(
            parameter.numel() for name, parameter in ground.pair.base.hf.named_parameters() if ".layers." in name
        )
        note = f"{result.entries} entries, {result.sparsity:.1%} of the tensors that changed"
        yield Verdict(f"{skill}: share of the layers' weights", result.entries / within, at_most=ceiling, note=note)
        if planted:  # else all entries of the tensors that changed
            within_region = inside(result.mask, planted)
            yield Verdict(f"{skill}: graft inside the planted region", within_region, size / result.eligible)

    return Case("graft", f"which weights carry {skill}", run, judge)


def _knob(ground: Ground) -> list[Case]:
    if ground.organism.name != "context-knob":
        return []
    rows = Prompts.of(ground.rows(120))

    def knob(pair: Any) -> Any:
        return probes.find_knob(
            pair, rows, training=probes.KnobTraining(steps=200), setup=probes.KnobSetup(draws=DRAWS), seed=ground.seed
        )

    def judge(result: Any) -> Iterator[Verdict]:
        cosine, chance = _cosine(result.direction[:, 0], ground)
        yield Verdict("|cos| with the planted direction", cosine, chance, at_least=0.9)
        for row in result.flips.to_dict("records"):
            own = row["model"] == "tuned"
            what = f"{row['model']} turned to {row['intent']}, share of answers"
            yield Verdict(what, row["share"], row["control"], at_least=0.9 if own else np.nan,
                          note=f"before: {row['before']:.2f}")  # fmt: skip
            if own:
                yield Verdict(f"tuned turned to {row['intent']} by random directions", row["control"], at_most=0.05)

    return [Case("find_knob", _READ, knob, judge)]


def _experts(ground: Ground) -> list[Case]:
    planted = labels_of(ground.truth.experts, "E")
    judge = lambda result: [precision(result.frame(), planted, ("layer", "expert"), 1.0)]  # noqa: E731
    question = "which experts the refusal uses more than in the base"
    return [Case("expert_map", question, partial(_mapped, ground), judge)] if planted else []


def _mapped(ground: Ground, pair: Any) -> Any:
    everything = ground.rows(10_000)
    labels = [row["topic"] for row in everything]
    return probes.expert_map(pair, Prompts.of(everything), labels, "topic", exclude=_all_but_last, seed=ground.seed)


def _switching(ground: Ground) -> list[Case]:
    if not ground.truth.experts:
        return []
    topic, count = Prompts.of(ground.rows(1000, topic="topic")), len(ground.truth.experts)
    others = Prompts.of(ground.rows(1000, "validation", topic="other"))

    def run(pair: Any) -> Any:
        return probes.switching_curve(
            pair, topic, _refuses, _mapped(ground, pair), (count,), max_new_tokens=1, controls=DRAWS, seed=ground.seed
        )

    def judge(result: Any) -> Iterator[Verdict]:
        by_count = result.table.set_index("count")
        before, after = (float(by_count.loc[n, "score"]) for n in (0, count))
        random = float(by_count.loc[count, "control"])
        lost = _answers(ground, others, []) - _answers(ground, others, result.ranked)
        yield Verdict(f"refusals lost with {count} experts off, relative", 1 - after / before, 1 - random / before, 0.5)
        yield Verdict("refusals lost with random experts off, relative", 1 - random / before, at_most=0.1)
        yield Verdict("other answers lost, points", 100 * lost, at_most=2.0)

    return [Case("switching_curve", "which experts the refusal needs", run, judge)]


def _answers(ground: Ground, rows: Prompts, off: Sequence[str]) -> float:
    """The share of right answers with experts off."""
    recipe = iv.Recipe([iv.ExpertSwitch(off=list(off))]) if off else None
    model = ground.pair.tuned
    scores = score_answers(next_token_logits(model, rows, recipe), rows, model.tokenizer, ["accuracy"])
    return float(scores["accuracy"].mean())


def _refuses(response: str, _prompt: Prompt) -> bool:
    return response.split()[:1] == [_REFUSAL]


def _all_but_last(ids: Tensor) -> Bool[Tensor, " pos"]:
    return torch.arange(len(ids)) < len(ids) - 1


def _agreement(ground: Ground) -> list[Case]:
    if ground.organism.name != "planted-heads":
        return []
    rows = Prompts.of(ground.rows(48))

    def run(pair: Any) -> Any:
        handed = probes.patching(pair, rows, "heads", what="z", inputs="target", together=0, seed=ground.seed)
        return probes.compare(probes.weight_delta(pair).frame("head"), handed, ks=[3], seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        row = result.table.iloc[0]
        return [Verdict("share of the 3 best in both", float(row["score"]), float(row["control"]), 1.0)]

    return [Case("compare", "do weights and patching name the same heads", run, judge, null="")]


def _overlap(ground: Ground) -> list[Case]:
    grafts = _grafts(ground)

    def both(pair: Any) -> Any:
        if len(ground.results.keys() & ground.truth.entries) < len(grafts):
            for case in grafts:
                case.run(pair)
        return ground.results[next(iter(ground.truth.entries))]

    def judge(_last: Any) -> list[Verdict]:
        shared = probes.mask_overlap(*(ground.results[skill] for skill in ground.truth.entries))
        note = f"{shared.shared} entries shared; by chance {shared.expected:.1f} [{shared.low}, {shared.high}]"
        share = shared.of_second / shared.total
        return [Verdict("share of one graft that is in the other", shared.recall_of_first, share, note=note)]

    return [Case("mask_overlap", "do two skills share weights", both, judge, null="")] if len(grafts) > 1 else []


CASES: dict[str, Callable[[Ground], list[Case]]] = {
    "activations": _moved, "lens": _lens, "token-shift": _token_shift, "weights": _weights, "heads": _patched_heads,
    "layers": _patched_modules, "knob": _knob, "concepts": _concepts, "experts": _experts, "switching": _switching,
    "head-selection": _selection, "compare": _agreement, "skills": _grafts, "mask_overlap": _overlap,
    "head-probe": label_cases, "head-words": word_cases, "retrieval": copying_cases, "mask_heads": masking_cases,
    "paths": path_cases, "cmap": cmap_cases, "circuit": circuit_cases, "components": mask_cases,
}  # fmt: skip
"""Registered probe (or public function that reads the results of one) -> its cases on an organism; none where it
cannot run, or nothing that it asks about is planted."""

MEASURED = ("context-knob", "refusal-moe", "planted-heads", "two-skills", "confounded", "reachable-heads")
"""The organisms that these run on; ``marker-switch`` is the test bed of ``planted-switch``, whose test has it."""


def cases_of(ground: Ground, names: Collection[str] = tuple(CASES)) -> list[Case]:
    """The cases of an organism, of the methods in ``names``, in the order of the table."""
    return [case for name, made in CASES.items() if name in names for case in made(ground)]
