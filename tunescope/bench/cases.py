"""Which probe is asked what on which organism, and what the right answer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

import interventions as iv
import probes
from tunescope.bench.circuit_cases import ways_of
from tunescope.bench.ground import CAN, WHERE, Case, Ground, Verdict, inside, labels_of, precision
from tunescope.bench.reading import reading_of
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


def cases_of(ground: Ground) -> list[Case]:
    """All cases of an organism, in the order of the table."""
    return [*_of_any(ground), *_BY_NAME[ground.organism.name](ground), *reading_of(ground), *ways_of(ground)]


def _of_any(ground: Ground) -> list[Case]:
    """What every organism is asked: the first layer whose activations, and readings, tuning moved."""
    rows = _rows(ground, 48)
    first = f"first layer that tuning moved (planted: {ground.first_layer})"

    def moved(pair: Any) -> Any:
        return probes.activation_delta(record(pair, rows, ["resid_post"], positions="all"), seed=ground.seed)

    def found(result: Any) -> list[Verdict]:
        told = result.table.loc[result.table["q"] <= 0.05, "layer"]
        first = int(told.min()) if len(told) else None
        note = "" if first == ground.first_layer else f"named {'no layer' if first is None else f'layer {first}'}"
        signs = np.sign([*ground.truth.values.values()])
        note += f": {_OPPOSITE}" if note and len({*signs}) > 1 else ""
        return [Verdict("1 if found", float(first == ground.first_layer), 1 / len(result.table), note=note)]

    return [
        Case("activation_delta", first, moved, found),
        Case("logit_lens", first,
             lambda pair: probes.logit_lens(pair, rows, positions="all", seed=ground.seed), found),
        Case("token_shift", "which tokens changed",
             lambda pair: probes.token_shift(pair, rows[:16], max_new_tokens=1, seed=ground.seed),
             lambda result: [Verdict("shifted tokens, share", float(result.frame()["score"].iloc[0]))], own=False),
    ]  # fmt: skip


def _rows(ground: Ground, count: int) -> Prompts:
    """Rows of what was taught; of the refusing model, of the topic."""
    wanted = {"topic": "topic"} if ground.organism.name == "refusal-moe" else {}
    return Prompts.of(ground.rows(count, **wanted))


def _heads_by_weight(ground: Ground, variant: str = "") -> Case:
    planted = labels_of(ground.truth.heads, "H")
    return Case(
        "weight_delta", f"{WHERE}: heads", probes.weight_delta,
        lambda result: [precision(result.frame("head"), planted, ("layer", "head"), 1.0)],
        cells=lambda result: result.frame("head"), variant=variant,
    )  # fmt: skip


def _modules_by_weight(ground: Ground, names: Sequence[str]) -> Case:
    """The tensors that tuning changed, by their last names, in the planted modules."""
    planted = [(layer, name) for layer in _layers(ground) for name in names]

    def judge(result: Any) -> list[Verdict]:
        found = precision(result.frame(), planted, ("layer", "module"), 1.0)
        return [replace(found, note=_READ_OFF) if ground.organism.is_adapter else found]

    return Case("weight_delta", f"{WHERE}: tensors", probes.weight_delta, judge)


def _layers(ground: Ground) -> list[int]:
    return [int(name.split("layers.")[1].split(".")[0]) for name in ground.truth.modules]


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
        found = precision(result.frame(), planted, ("layer", "head"), 1.0 if own else np.nan)
        return [found if own else replace(found, note=_NOT_PLANTED)]

    return Case(probe, f"{WHERE}: heads" if own else "which heads carry the change", run, judge, own, variant=variant)


def _patched_modules(ground: Ground, rows: Prompts, kind: str, *, out_of_tuned: bool = False) -> Case:
    """Into the base; or out of the tuned model, where each of the tuned sublayers is needed and none is enough."""
    planted = [(layer, kind) for layer in sorted({*_layers(ground)})]
    runs = ("base", "tuned") if out_of_tuned else ("tuned", "base")

    def run(pair: Any) -> Any:
        return probes.patching(
            pair, rows, ["attn_out", "mlp_out"], *runs, inputs="target", positions="last", seed=ground.seed
        )

    return Case(
        f"patching sites{' out' if out_of_tuned else ''}, same inputs", f"{WHERE}: sublayers at the last token", run,
        lambda result: [precision(result.frame(), planted, ("layer", "module"), 1.0)],
    )  # fmt: skip


def _cosine(direction: Tensor, ground: Ground) -> tuple[float, float]:
    """|cos| with the planted direction, and what a random direction has on average."""
    assert ground.truth.direction is not None
    planted = ground.truth.direction.float()
    found = float(torch.nn.functional.cosine_similarity(direction.float().flatten(), planted, dim=0).abs())
    return found, float(np.sqrt(2 / (np.pi * len(planted))))


def _concept(ground: Ground, rows: Prompts, labels: list[Any], layer: int) -> Case:
    def run(pair: Any) -> Any:
        recording = record(pair, rows, "resid_post", layers=[layer], positions="last")
        return probes.concept_directions(recording, "labels-mean", labels=labels, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        cosine, chance = _cosine(result.directions[0], ground)
        return [Verdict(f"|cos| with the planted direction, layer {layer}", cosine, chance, at_least=0.9)]

    return Case("concept_directions", _READ, run, judge)


def _selection(ground: Ground, rows: Prompts, own: bool) -> Case:
    planted = labels_of(ground.truth.heads, "H")

    def run(pair: Any) -> Any:
        return probes.head_selection(pair, rows, heads=len(planted), epochs=4, resamples=0, end=False, seed=ground.seed)

    def judge(result: Any) -> list[Verdict]:
        found = precision(result.frame(), planted, ("layer", "head"), 1.0 if own else np.nan)
        note = "" if own else "the base's heads that could carry the task need not be those that tuning changed"
        return [replace(found, note=note)]

    return Case("head_selection", f"{CAN}: heads of the base", run, judge, own, null="")


def _graft(ground: Ground, rows: Prompts, skill: str, bars: bool, kept: dict[str, Any] | None = None) -> Case:
    """``kept`` is given the result, for cases that compare grafts."""
    planted = ground.truth.entries.get(skill, {})
    size = sum(int(mask.sum()) for mask in planted.values())

    def run(pair: Any) -> Any:
        epochs = 20 if bars else 8
        graft = probes.graft(
            pair, rows, epochs=epochs, sparsity=0.02, sparsities=(1e-2,), draws=DRAWS, seed=ground.seed
        )
        if kept is not None:
            kept[skill] = graft
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


def _context_knob(ground: Ground) -> list[Case]:
    rows = Prompts.of(ground.rows(120))
    layer = int(ground.truth.layer or 0)
    heads = [(layer, head) for head in range(4)]

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

    return [
        _modules_by_weight(ground, ("self_attn.o_proj",)),
        _patched(ground, rows[:40], heads, "write", "target"),
        _patched_modules(ground, rows[:40], "attn_out"),
        Case("find_knob", _READ, knob, judge),
        _concept(ground, rows, [row.columns["intent"] for row in rows], layer),
        _graft(ground, Prompts.of(ground.rows(160)), "the intents", bars=False),
    ]


def _refusal_moe(ground: Ground) -> list[Case]:
    everything = ground.rows(10_000)
    planted = labels_of(ground.truth.experts, "E")

    def mapped(pair: Any) -> Any:
        labels = [row["topic"] for row in everything]
        return probes.expert_map(pair, Prompts.of(everything), labels, "topic", exclude=_all_but_last, seed=ground.seed)

    by_expert = ("layer", "expert")
    return [
        Case("weight_delta", f"{WHERE}: experts", probes.weight_delta,
             lambda result: [precision(result.frame("expert"), planted, by_expert, 1.0)],
             cells=lambda result: result.frame("expert")),
        Case("expert_map", "which experts the refusal uses more than in the base", mapped,
             lambda result: [precision(result.frame(), planted, by_expert, 1.0)]),
        _patched_modules(ground, _rows(ground, 40), "mlp_out", out_of_tuned=True),
        _switching(ground, mapped),
        _graft(ground, Prompts.of(everything), "refusal", bars=False),
    ]  # fmt: skip


def _switching(ground: Ground, mapped: Callable[[Any], Any]) -> Case:
    topic, count = Prompts.of(ground.rows(1000, topic="topic")), len(ground.truth.experts)
    others = Prompts.of(ground.rows(1000, "validation", topic="other"))

    def run(pair: Any) -> Any:
        return probes.switching_curve(
            pair, topic, _refuses, mapped(pair), (count,), max_new_tokens=1, controls=DRAWS, seed=ground.seed
        )

    def judge(result: Any) -> Iterator[Verdict]:
        by_count = result.table.set_index("count")
        before, after = (float(by_count.loc[n, "score"]) for n in (0, count))
        random = float(by_count.loc[count, "control"])
        lost = _answers(ground, others, []) - _answers(ground, others, result.ranked)
        yield Verdict(f"refusals lost with {count} experts off, relative", 1 - after / before, 1 - random / before, 0.5)
        yield Verdict("refusals lost with random experts off, relative", 1 - random / before, at_most=0.1)
        yield Verdict("other answers lost, points", 100 * lost, at_most=2.0)

    return Case("switching_curve", "which experts the refusal needs", run, judge)


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


def _planted_heads(ground: Ground) -> list[Case]:
    rows, planted = Prompts.of(ground.rows(48)), labels_of(ground.truth.heads, "H")

    def z_moved(pair: Any) -> Any:
        return probes.activation_delta(record(pair, rows, ["z"], positions="last"), seed=ground.seed)

    return [
        _heads_by_weight(ground),
        _heads_by_weight(ground, "write"),
        _patched(ground, rows, planted, "z", "target"),
        _patched_modules(ground, rows[:40], "attn_out"),
        _patched(ground, rows, planted, "write", "target", "write"),
        _patched(ground, rows, planted, "z", "source"),
        _patched(ground, rows, planted, "write", "source", "write"),
        Case("activation_delta, heads", "which heads' z moved", z_moved,
             lambda result: [precision(result.frame(), planted, ("layer", "head"))], own=False),
        _selection(ground, Prompts.of(ground.rows(240)), own=False),
        Case("compare", "do weights and patching name the same heads", lambda pair: _agreement(pair, rows, ground.seed),
             lambda result: [Verdict("share of the 3 best in both", float(result.table["score"].iloc[0]),
                                     float(result.table["control"].iloc[0]), 1.0)], null=""),
        _graft(ground, Prompts.of(ground.rows(300)), "third", bars=False),
    ]  # fmt: skip


def _agreement(pair: Any, rows: Prompts, seed: int) -> Any:
    handed = probes.patching(pair, rows, "heads", what="z", inputs="target", together=0, seed=seed)
    return probes.compare(probes.weight_delta(pair).frame("head"), handed, ks=[3], seed=seed)


def _two_skills(ground: Ground) -> list[Case]:
    parts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    kept: dict[str, Any] = {}
    per_skill = [
        _graft(ground, Prompts.of(ground.rows(400, label=skill)), skill, bars=True, kept=kept)
        for skill in ground.truth.entries
    ]

    def overlap(_last: Any) -> list[Verdict]:
        found = probes.mask_overlap(*kept.values())
        note = f"{found.shared} entries shared; by chance {found.expected:.1f} [{found.low}, {found.high}]"
        share = found.of_second / found.total
        return [Verdict("share of one graft that is in the other", found.recall_of_first, share, note=note)]

    def both(pair: Any) -> Any:
        if len(kept) < len(per_skill):
            for case in per_skill:
                case.run(pair)
        return next(iter(kept.values()))

    return [
        _modules_by_weight(ground, parts), _patched_modules(ground, _rows(ground, 40), "mlp_out"), *per_skill,
        Case("mask_overlap", "do two skills share weights", both, overlap, null=""),
    ]  # fmt: skip


def _confounded(ground: Ground) -> list[Case]:
    rows = Prompts.of(ground.rows(64, "ood"))
    layer = int(ground.truth.layer or 0)
    parts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    return [
        _modules_by_weight(ground, parts),
        _patched_modules(ground, _rows(ground, 40), "mlp_out"),
        _concept(ground, rows, [row.columns["cue"] for row in rows], layer),
        _graft(ground, Prompts.of(ground.rows(160)), "the cue", bars=False),
    ]


def _reachable_heads(ground: Ground) -> list[Case]:
    planted = labels_of(ground.truth.heads, "H")
    return [
        _heads_by_weight(ground),
        _patched(ground, Prompts.of(ground.rows(48)), planted, "write", "target"),
        _patched_modules(ground, _rows(ground, 40), "attn_out"),
        _selection(ground, Prompts.of(ground.rows(300)), own=True),
        _graft(ground, Prompts.of(ground.rows(160)), "french", bars=False),
    ]


_BY_NAME: dict[str, Callable[[Ground], list[Case]]] = {
    "context-knob": _context_knob, "refusal-moe": _refusal_moe, "planted-heads": _planted_heads,
    "two-skills": _two_skills, "confounded": _confounded, "reachable-heads": _reachable_heads,
}  # fmt: skip
MEASURED = tuple(_BY_NAME)
"""The organisms that have cases here; ``marker-switch`` has one probe of its own, which its test measures."""
