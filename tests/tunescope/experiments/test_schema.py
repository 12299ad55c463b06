"""``experiment.yaml``: the round trip, and one sentence with place and closest name for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunescope.experiments import Experiment, PairSpec, PromptSet, RecipeSpec, steps
from tunescope.experiments.derived_interventions import derived_spec
from tunescope.experiments.inline import ExpertSwitchSpec, FirstOf, SubspaceKnobSpec
from tunescope.experiments.method_steps import step_type
from tunescope.experiments.sweeping import cells
from tunescope.experiments.tensor_source import TensorRef
from tunescope.experiments.yaml_text import read_yaml
from workbench.errors import UserError

TEXT = """
name: refusal-experts
about: Which experts refuse?
pair: {organism: refusal-moe}
prompts:
  train: {split: train}
  topic: {split: validation, where: {topic: topic}, limit: 12}
recipes:
  found:
    - {kind: ExpertSwitch, off: {from: experts, first: 3}}
  planted:
    - {kind: ExpertSwitch, off: [L1E4, L2E1, L3E0]}
steps:
  experts: {do: localize experts, prompts: train, label: topic, target: topic}
  effect: {do: diff, prompts: topic, recipes: [found, planted], metrics: [accuracy, distracted]}
sweep:
  seed: [0, 1]
  recipes.found.0.off.first: [1, 3]
"""


def test_what_is_read_is_written_and_read_again() -> None:
    first = Experiment.parse(TEXT)
    assert Experiment.parse(first.to_yaml()) == first
    assert Experiment.parse(first.to_yaml()).to_yaml() == first.to_yaml()
    assert list(first.steps) == ["experts", "effect"]


def test_made_in_python_it_is_the_same_as_from_yaml() -> None:
    made = Experiment(
        name="refusal-experts",
        about="Which experts refuse?",
        pair=PairSpec(organism="refusal-moe"),
        prompts={
            "train": PromptSet(split="train"),
            "topic": PromptSet(split="validation", where={"topic": "topic"}, limit=12),
        },
        recipes={
            "found": RecipeSpec(interventions=[ExpertSwitchSpec(off=FirstOf(from_step="experts", first=3))]),
            "planted": RecipeSpec(interventions=[ExpertSwitchSpec(off=["L1E4", "L2E1", "L3E0"])]),
        },
        steps={
            "experts": step_type("experts")(prompts="train", labels="topic", target="topic"),
            "effect": steps.Diff(prompts="topic", recipes=["found", "planted"], metrics=["accuracy", "distracted"]),
        },
        sweep={"seed": [0, 1], "recipes.found.0.off.first": [1, 3]},
    )
    assert made == Experiment.parse(TEXT)
    assert Experiment.parse(made.to_yaml()) == made


def test_every_kind_of_step_and_intervention_survives_the_round_trip(tmp_path: Path) -> None:
    text = """
name: all
pair: {base: ./base, tuned: org/name@main, device: cpu}
prompts: {file: p.jsonl, where: {topic: [a, b], known: true}, skip: 2, limit: 4}
recipes:
  saved: {file: r.safetensors, strength: 0.5}
  many:
    - {kind: Offset, layer: 0.5, vector: [0.1, 1e-3], units: fraction, strength: -2}
    - {kind: Offset, layer: 1, vector: {from: rec, layer: 1, where: {label: a}}, positions: [0, -1]}
    - {kind: HeadOffset, vectors: {L0H1: [1, 2], L1H0: {file: v.safetensors, tensor: x}}}
    - {kind: HeadOffset, vectors: {from: probe, first: 2}, strength: 15}
    - {kind: HeadScale, scales: {L0H1: 0, L1H1: [0.5, 1.5]}}
    - {kind: HeadScale, scales: {from: heads, first: 2, scale: 0}}
    - {kind: ExpertSwitch, off: [L0E1], on: [L0E2], mode: drop_renorm, weight: max}
    - {kind: SubspaceKnob, knob: {from: knob, to: context}}
    - {kind: SubspaceKnob, layer: 1, direction: {from: knob}, value: 2, mode: add, positions: last}
    - {kind: ConceptAblation, concepts: {from: concepts, directions: [0, 2], to: mean}}
    - {kind: ConceptAblation, layer: 0, directions: [[1, 0], [0, 1]], mean: [0, 0]}
    - {kind: Clamp, layer: 0, direction: [1, 0], low: -1}
    - {kind: AttentionScale, gamma: 2, heads: [L0H0], keys: "prompt[2:5]"}
    - {kind: AdapterScale, scale: 0.5, layers: {0: 1, 1: 0}, modules: {mlp: 0.5}}
    - {kind: LayerScale, a: 0.5, b: 0.5}
    - {kind: Graft, skill: {from: skills}}
    - {kind: SubspaceKnob, knob: {file: runs/a/results/knob.safetensors, to: 1.5}}
    - {kind: HeadOffset, vectors: {file: probe.safetensors, first: 2}, strength: 15, positions: last+generated}
steps:
  rec: {do: record, sites: [resid_post, z], layers: [0, 0.5], positions: last}
  weights: {do: localize weights}
  moved: {do: localize activations, record: rec}
  heads: {do: localize heads, what: z, layers: [1], options: {method: attribution}}
  probe: {do: localize head-probe, record: rec, label: topic}
  skills: {do: localize skills, level: heads, sparsity: 1e-2, options: {epochs: 2}}
  knob: {do: localize knob, layers: [1, 2], steps: 10, options: {draws: 20}}
  experts: {do: localize experts, within: base, positions: last}
  curve: {do: localize switching, begins: sorry, ranking: {from: experts, first: 4}, counts: [1, 4], mode: drop}
  concepts: {do: localize concepts, record: rec, layer: 1, method: pca}
  lens: {do: probe, call: logit_lens, options: {top: 3, layers: [0]}}
  needles: {do: localize retrieval, haystack: h.txt, needles: [{question: q, text: t}], lengths: [64]}
  texts: {do: generate, recipes: [many], strengths: [0, 1], on: tuned, begins: "#: sorry"}
  parted: {do: localize components, desiderata: {": {x}": prompts, "on": prompts}, heads: [L0H0], position: -1}
  whole: {do: probe, call: circuit, options: {heads: {last: [L0H0]}}, sets: {reference: prompts}}
  elsewhere: {do: localize heads, pair: {base: ./c, tuned: ./d}}
  beside: {do: compare, first: {from: heads}, second: {file: runs/x/result.safetensors}}
  far: {do: scope, recipes: [saved], near: prompts, outside: prompts, changed: refusal, on: base}
  sure: {do: parts, by: sure, recipes: [saved], metrics: [brier], options: {threshold: 0.5}}
  slope: {do: dose, outside: prompts, recipe: saved, strengths: [-1, 0, 1.5], metrics: [prob], on: base, controls: 0}
  effect:
    {do: diff, recipes: [saved, many], base_recipes: [saved], seed: 3, metrics: [perplexity, refusal],
     neutral: prompts, options: {samples: 2, max_new_tokens: 4}}
sweep: {seed: [0], pair.base: [./base, ./other], steps.knob.layers: [search, [1]], recipes.many.strength: [1]}
tracker: wandb
"""
    first = Experiment.parse(text)
    file = first.save(tmp_path / "x.yaml")
    assert Experiment.load(file) == first
    assert first.recipes["many"].interventions[6].off == ["L0E1"]  # type: ignore[index,union-attr]
    assert {cell.experiment.pair.base for cell in cells(first)} == {"./base", "./other"}
    assert [cell.settings["steps.knob.layers"] for cell in cells(first)] == ["search", [1], "search", [1]]


MISTAKES = [
    ("metrics:", "metrcs:", "steps.effect.metrcs: unknown key 'metrcs'. Did you mean 'metrics'?"),
    ("do: diff", "do: dif", "steps.effect.do: unknown value 'dif'. Did you mean 'diff'?"),
    ("do: diff, ", "", "steps.effect.do: is missing"),
    ("{split: train}", "{spilt: train}", "prompts.train.spilt: unknown key 'spilt'. Did you mean 'split'?"),
    ("{split: train}", "{}", "prompts.train: give exactly one of file, rows, split; got none."),
    ("first: 3", "frist: 3", "recipes.found.0.off.frist: unknown key 'frist'. Did you mean 'first'?"),
    ("first: 3", "first: 0", "recipes.found.0.off.first: 0: input should be greater than or equal to 1."),
    ("prompts: topic", "prompts: topi", "steps.effect.prompts: unknown set of prompts 'topi'. Did you mean 'topic'?"),
    ("[found, planted]", "[fuond]", "steps.effect.recipes.0: unknown recipe 'fuond'. Did you mean 'found'?"),
    ("[accuracy,", "[acuracy,", "steps.effect.metrics.0: unknown metric 'acuracy'. Did you mean 'accuracy'?"),
    ("[accuracy, distracted]", "accuracy", "steps.effect.metrics: 'accuracy' is no list"),
    ("kind: ExpertSwitch, off: [", "kind: ExpertSwich, off: [", "Did you mean 'ExpertSwitch'?"),
    ("off: [L1E4, L2E1, L3E0]", "off: 3", "recipes.planted.0.off: 3 is no mapping"),
    ("from: experts", "from: expert", "recipes.found.0.off.from: unknown step 'expert'. Did you mean 'experts'?"),
    ("from: experts", "from: effect", "this needs a step that does 'localize experts'."),
    ("target: topic", "target: topic, options: {drows: 3}", "unknown option 'drows'. Did you mean 'draws'?"),
    ("organism: refusal-moe", "organism: refusal-mo", "pair.organism: unknown organism 'refusal-mo'."),
    ("{organism: refusal-moe}", "{base: ./a}", "pair: give base and tuned"),
    ("{organism: refusal-moe}", "{base: ./a, tuned: ./b}", "prompts.train.split: only an organism has splits"),
    ("seed: [0, 1]", "seed: []", "sweep.seed: has no values"),
    ("seed: [0, 1]", "seed: [0, 0]", "sweep.seed: names a value twice"),
    ("seed: [0, 1]", "seed: [0, x]", "sweep.seed.1: seed=x"),
    ("seed: [0, 1]", "seed: 3", "sweep.seed: 3 is no list"),
    ("found.0.off.first", "fond.0.off.first", "Did you mean 'found'?"),
    ("found.0.off.first", "found.7.off.first", "leads nowhere"),
    ("recipes.found.0.off.first: [1, 3]", "steps.effect.metrcs: [[kl]]", "Did you mean 'metrics'?"),
    ("recipes.found.0.off.first: [1, 3]", "steps: [{}]\n  steps.effect.seed: [1]", "sweep.steps"),
    ("metrics: [accuracy,", "controls: 3, metrics: [accuracy,", "steps.effect.controls: a control needs at least 10"),
    ("metrics: [accuracy,", "metrics: [perplexity,", "steps.effect.metrics: perplexity needs neutral"),
    ("metrics: [accuracy,", "options: {smaples: 2}, metrics: [accuracy,", "Did you mean 'samples'?"),
    ("from: experts, first: 3", "first: 3", "recipes.found.0.off: give from (an earlier step), or file (a result"),
    ("from: experts, first: 3", "from: experts, file: x", "recipes.found.0.off: give from (an earlier step), or file"),
    ("{split: train}", "{split: [train, 3]}", "prompts.train.split: ['train', 3] is no split; give a name,"),
    ("{split: train}", "{split: train, answer: [a]}", "prompts.train.answer: ['a']"),
    ("label: topic,", "within: tuend, label: topic,", "steps.experts.within: 'tuend' is none of"),
    ("label: topic,", "positions: first, label: topic,", "steps.experts.positions: 'first' is none of"),
    ("  effect:", "  off: {do: localize switching, ranking: [L0E1]}\n  effect:", "steps.off.behaviour: is missing"),
    (
        "  effect:",
        "  off: {do: localize switching, begins: ' ', ranking: []}\n  effect:",
        "steps.off: is empty",
    ),
    (
        "  effect:",
        "  off: {do: localize switching, begins: a, ranking: {from: efect}}\n  effect:",
        "steps.off.ranking.from: unknown step 'efect'. Did you mean 'effect'?",
    ),
    (
        "  effect:",
        "  off: {do: localize switching, begins: a, ranking: {from: effect}}\n  effect:",
        "steps.off.ranking.from: step 'effect' comes later; move it up.",
    ),
    (
        "  effect:",
        "  off: {do: localize switching, begins: a, ranking: [L0E1], counts: [0]}\n  effect:",
        "steps.off.counts.0: 0: input should be greater than or equal to 1.",
    ),
    (
        "  effect:",
        "  off: {do: localize switching, begins: a, ranking: [L0E1], options: {contrls: 3}}\n  effect:",
        "unknown option 'contrls'. Did you mean 'controls'?",
    ),
    (
        "  effect:",
        "  knob: {do: localize knob, options: {drows: 3}}\n  effect:",
        "steps.knob.options.drows: unknown option 'drows'. Did you mean 'draws'?",
    ),
    (
        "  train: {split: train}\n  topic: {split: validation, where: {topic: topic}, limit: 12}",
        "  {}",
        "steps.experts: needs prompts; add a set of them under prompts.",
    ),
    (
        "  effect:",
        "  parted: {do: localize components, desiderata: [train, trian]}\n  effect:",
        "steps.parted.desiderata: unknown set of prompts 'trian'. Did you mean 'train'?",
    ),
    (
        "  effect:",
        "  parted: {do: localize components, desiderata: [train, train]}\n  effect:",
        "steps.parted.desiderata: names a set twice",
    ),
    (
        "  effect:",
        "  parted: {do: localize components, desiderata: []}\n  effect:",
        "steps.parted.desiderata: is empty; give at least one.",
    ),
    ("  effect:", "  parted: {do: localize components}\n  effect:", "steps.parted.desiderata: is missing"),
    (
        "  effect:",
        "  parted: {do: localize components, prompts: train, desiderata: [train]}\n  effect:",
        "steps.parted.prompts: these are several sets: name them under desiderata.",
    ),
    (
        "  effect:",
        "  parted: {do: localize components, desiderata: [train], options: {drows: 3}}\n  effect:",
        "unknown option 'drows'. Did you mean 'draws'?",
    ),
    (
        "  effect:",
        "  parted: {do: localize components, desiderata: [train], penalties: []}\n  effect:",
        "steps.parted.penalties: is empty",
    ),
    (
        "  effect:",
        "  whole: {do: probe, call: circuit, options: {heads: [L0H0]}, sets: {refrence: train}}\n  effect:",
        "steps.whole: unknown key 'refrence'. Did you mean 'reference'?",
    ),
    (
        "  effect:",
        "  whole: {do: probe, call: cmap, options: {heads: [L0H0]}, sets: {reference: train}}\n  effect:",
        "steps.whole: unknown key 'reference'.",
    ),
    (
        "  effect:",
        "  whole: {do: probe, call: circuit, options: {heads: [L0H0]}, sets: {reference: tpic}}\n  effect:",
        "steps.whole: unknown set of prompts 'tpic'. Did you mean 'topic'?",
    ),
    ("  effect:", "  far: {do: scope, recipes: [planted]}\n  effect:", "steps.far.outside: is missing"),
    ("  effect:", "  far: {do: scope, recipes: [], outside: train}\n  effect:", "steps.far.recipes: is empty"),
    (
        "  effect:",
        "  far: {do: scope, recipes: [planted], outside: train, near: tran}\n  effect:",
        "steps.far.near: unknown set of prompts",
    ),
    (
        "  effect:",
        "  far: {do: scope, recipes: [planted], outside: train, controls: 9}\n  effect:",
        "steps.far.controls: a control needs at least 10",
    ),
    (
        "  effect:",
        "  far: {do: scope, recipes: [planted], outside: train, changed: txt}\n  effect:",
        "steps.far.changed: 'txt' is none of",
    ),
    (
        "  effect:",
        "  far: {do: scope, recipes: [plnted], outside: train}\n  effect:",
        "steps.far.recipes.0: unknown recipe 'plnted'. Did you mean 'planted'?",
    ),
    ("  effect:", "  known: {do: parts}\n  effect:", "steps.known.by: is missing"),
    ("  effect:", "  known: {do: parts, by: knwon}\n  effect:", "steps.known.by: 'knwon' is none of"),
    (
        "  effect:",
        "  known: {do: parts, by: known, metrics: [perplexity]}\n  effect:",
        "steps.known.metrics: perplexity is of neutral texts",
    ),
    (
        "  effect:",
        "  known: {do: parts, by: known, metrics: [refusl]}\n  effect:",
        "steps.known.metrics.0: unknown metric 'refusl'. Did you mean 'refusal'?",
    ),
    (
        "  effect:",
        "  known: {do: parts, by: known, options: {threshold: 1}}\n  effect:",
        "steps.known.options.threshold: unknown option 'threshold'.",
    ),
    ("  effect:", "  alike: {do: compare, first: {from: experts}}\n  effect:", "steps.alike.second: is missing"),
    (
        "  effect:",
        "  alike: {do: compare, first: {from: experts}, second: {from: exprts}}\n  effect:",
        "steps.alike.second.from: unknown step 'exprts'. Did you mean 'experts'?",
    ),
    (
        "  effect:",
        "  alike: {do: compare, first: {from: experts}, second: {file: a, from: experts}}\n  effect:",
        "steps.alike.second: give from (an earlier step), or file",
    ),
    (
        "  effect:",
        "  metrics: {do: localize experts}\n  effect:",
        "steps.metrics: a step cannot be called 'metrics', as a table of the run is",
    ),
    (
        "  effect:",
        "  other: {do: localize experts, pair: {organism: refusal-mo}}\n  effect:",
        "steps.other.pair.organism: unknown organism 'refusal-mo'.",
    ),
    (
        "  effect:",
        "  other: {do: localize experts, prompts: train, pair: {base: a, tuned: b}}\n  effect:",
        "prompts.train.split: only an organism has splits",
    ),
    (
        "  effect:",
        "  rec: {do: record}\n  acts: {do: localize activations, record: rec, pair: {base: a, tuned: b}}\n  effect:",
        "steps.acts.pair: step 'rec' decides the pair; leave it out.",
    ),
    ("  effect:", "  said: {do: generate, begins: ' '}\n  effect:", "steps.said.begins: is empty; give the word"),
    ("metrics: [accuracy,", "neutral: trian, metrics: [accuracy,", "steps.effect.neutral: unknown set of prompts"),
    ("  planted:", "  tuned:", "recipes.tuned: a recipe cannot be called 'tuned'"),
    ("seed: [0, 1]", f"seed: {[*range(5001)]}", "sweep: spans 10002 cells"),
    ("[L1E4, L2E1, L3E0]}", "[L1E4], strength: inf}", "recipes.planted.0.strength: 'inf'"),
    ("name: refusal-experts", "name: ../../x", "name: '../../x' is no plain name"),
    ("name: refusal-experts", "nam: x", "nam: unknown key 'nam'. Did you mean 'name'?"),
    ("name: refusal-experts", "", "name: is missing"),
    ("  effect: {", "  ef/fect: {", "steps.ef/fect: the name 'ef/fect' is not plain"),
    ("sweep:", "sweep: [", "YAML"),
    ("about: Which", "name: again\nabout: Which", "the key 'name' stands here a second time"),
    ("about: Which experts refuse?", "about: !!python/object/apply:os.system [ls]", "YAML"),
]


@pytest.mark.parametrize(("right", "wrong", "phrase"), MISTAKES, ids=[wrong[:30] for _, wrong, _ in MISTAKES])
def test_a_mistake_is_one_sentence_with_its_place(right: str, wrong: str, phrase: str) -> None:
    assert right in TEXT
    with pytest.raises(UserError) as told:
        Experiment.parse(TEXT.replace(right, wrong, 1), "e.yaml")
    said = str(told.value)
    assert said.startswith("e.yaml") and phrase in said
    assert "\n" not in said and "pydantic" not in said and "input_value" not in said


def test_a_recipe_cannot_read_a_step_that_comes_later() -> None:
    values: dict[str, Any] = read_yaml(TEXT, "e.yaml")
    values["steps"] = dict(reversed(values["steps"].items()))
    with pytest.raises(UserError, match="reads step 'experts', which comes later"):
        Experiment.of(values)


@pytest.mark.parametrize("text", ["", "- a\n- b", "3", "a: &x [*x]", "{" * 5000])
def test_what_is_no_experiment_at_all_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Experiment.parse(text)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        Experiment.load(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text file"):
        Experiment.load(tmp_path / "x.yaml")


def test_a_sweep_changes_one_cell_and_nothing_else() -> None:
    found = cells(Experiment.parse(TEXT))
    assert [dict(one.settings) for one in found] == [
        {"seed": seed, "recipes.found.0.off.first": first} for seed in (0, 1) for first in (1, 3)
    ]
    assert [one.experiment.seed for one in found] == [0, 0, 1, 1]
    assert len({one.folder for one in found}) == 4
    whole = Experiment.parse(TEXT)
    assert found[0].experiment.recipes["planted"] == whole.recipes["planted"]
    assert found[0].experiment.steps == whole.steps


def test_references_are_specs_that_can_be_built_by_hand() -> None:
    spec = derived_spec("Offset")(layer=1, vector=TensorRef(from_step="rec", layer=1))
    assert spec.plain() == {"kind": "Offset", "layer": 1, "vector": {"from": "rec", "layer": 1}}
    with pytest.raises(ValueError, match="give knob"):
        SubspaceKnobSpec(layer=1)
