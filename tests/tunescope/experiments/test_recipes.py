"""Recipes of an experiment are those that Python builds; their random stand-ins differ in what was chosen alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

import interventions as iv
import probes
import workbench as wb
from tunescope.experiments import Experiment, RecipeSpec, recipe_spec
from tunescope.experiments.derived_interventions import entries
from tunescope.experiments.inline import spec_of
from tunescope.experiments.materials import Materials, files_named
from tunescope.experiments.recipes import RecipeBuilder
from tunescope.experiments.yaml_text import read_yaml
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts


@pytest.fixture(scope="module")
def pair(home: Path) -> ModelPair:
    return wb.load_pair(home / "llama-base", home / "llama-tuned", device="cpu")


@pytest.fixture(scope="module")
def moe(home: Path) -> ModelPair:
    return wb.load_pair(home / "mixtral-base", home / "mixtral-tuned", device="cpu")


@pytest.fixture(scope="module")
def rows(home: Path) -> Prompts:
    return Prompts.load(home / "p.jsonl")


def built(text: str, pair: ModelPair, folder: Path, results: dict[str, Any] | None = None) -> iv.Recipe:
    spec = RecipeSpec.model_validate(read_yaml(text, "recipe"))
    return RecipeBuilder(pair, Materials(folder), (results or {}).__getitem__).build(spec)


def test_plain_interventions_are_those_of_python(pair: ModelPair, tmp_path: Path) -> None:
    vector = torch.arange(64.0)
    save_file({"v": vector, "w": torch.ones(64)}, tmp_path / "v.safetensors")
    found = built(
        """
        - {kind: Offset, layer: 1, vector: {file: v.safetensors, tensor: v}, strength: -0.5, positions: last}
        - {kind: HeadOffset, vectors: {L0H1: [1, 2, 3]}, positions: [0, -1]}
        - {kind: HeadScale, scales: {L0H1: 0, L2H3: 0.5}}
        - {kind: ExpertSwitch, off: [L0E1], on: [L1E2], mode: drop_renorm, weight: 0.25}
        - {kind: SubspaceKnob, layer: 1, direction: {file: v.safetensors, tensor: w}, value: 2, mode: add}
        - {kind: ConceptAblation, layer: 0.5, directions: [[1, 0, 0], [0, 1, 0]], mean: [1, 1, 1]}
        - {kind: Clamp, layer: 0, direction: [1, 0], low: -1, high: 2}
        - {kind: AttentionScale, gamma: 2, heads: [L0H0], keys: "prompt[2:5]"}
        - {kind: AdapterScale, scale: 0.5, layers: {0: 1, 1: 0}, modules: {mlp: 0.5}}
        """,
        pair,
        tmp_path,
    )
    assert list(found) == [
        iv.Offset(1, vector, strength=-0.5, positions="last"),
        iv.HeadOffset({"L0H1": torch.tensor([1.0, 2, 3])}, positions=[0, -1]),
        iv.HeadScale({"L0H1": 0.0, "L2H3": 0.5}),
        iv.ExpertSwitch(off=["L0E1"], on=["L1E2"], mode="drop_renorm", weight=0.25),
        iv.SubspaceKnob(1, torch.ones(64), 2.0, "add", positions="last+generated"),
        iv.ConceptAblation(0.5, torch.eye(3)[:2], mean=torch.ones(3)),
        iv.Clamp(0, torch.tensor([1.0, 0]), -1.0, 2.0),
        iv.AttentionScale(2.0, ["L0H0"], "prompt[2:5]"),
        iv.AdapterScale(0.5, {0: 1.0, 1: 0.0}, {"mlp": 0.5}),
    ]


def test_a_saved_recipe_alone_and_among_others(pair: ModelPair, tmp_path: Path) -> None:
    saved = iv.Recipe([iv.Offset(0, torch.ones(64)), iv.HeadScale({"L0H0": 0.0})])
    saved.save(tmp_path / "r.safetensors")
    assert built("{file: r.safetensors}", pair, tmp_path) == saved
    assert built("{file: r.safetensors, strength: 0.5}", pair, tmp_path) == saved * 0.5
    more = built(
        "[{kind: Recipe, file: r.safetensors, strength: 2}, {kind: HeadScale, scales: {L1H0: 0}}]", pair, tmp_path
    )
    assert more == saved * 2 + iv.HeadScale({"L1H0": 0.0})


def test_what_a_run_keeps_is_used_by_its_file(pair: ModelPair, rows: Prompts, tmp_path: Path) -> None:
    recording = wb.record(pair, rows, ["resid_post", "z"], positions="last")
    probe = probes.head_probe(recording, folds=2)
    probe.save(tmp_path / "probe.safetensors")
    probes.concept_directions(recording, "mean", layer=1).save(tmp_path / "concepts.safetensors")
    probes.activation_delta(recording).save(tmp_path / "moved.safetensors")
    found = built(
        """
        - {kind: HeadOffset, vectors: {file: probe.safetensors, first: 2}, strength: 3, positions: last+generated}
        - {kind: HeadScale, scales: {file: probe.safetensors, first: 1}}
        - {kind: ConceptAblation, concepts: {file: concepts.safetensors}, positions: last}
        """,
        pair,
        tmp_path,
    )
    (layer, head), *_ = probe.top(1)
    concepts = probes.ConceptDirections.load(tmp_path / "concepts.safetensors")
    assert list(found) == [
        *probe.recipe(2, 3.0), iv.HeadScale({f"L{layer}H{head}": 0.0}), *concepts.recipe([0], positions="last")
    ]  # fmt: skip
    wrong = "[{kind: HeadOffset, vectors: {file: concepts.safetensors}}]"
    with pytest.raises(UserError, match=r"concepts.safetensors holds a ConceptDirections; this needs a HeadProbe\."):
        built(wrong, pair, tmp_path)
    with pytest.raises(UserError, match=r"There is no result at .*none\.safetensors"):
        built(wrong.replace("concepts", "none"), pair, tmp_path)
    with pytest.raises(UserError, match="holds a ActivationDelta; this needs a Knob"):
        built("[{kind: SubspaceKnob, knob: {file: moved.safetensors, to: a}}]", pair, tmp_path)
    spec = Experiment.parse(
        f"name: f\npair: {{base: a, tuned: b}}\nrecipes: {{r: {wrong}}}\nsteps: {{s: {{do: localize weights}}}}"
    )
    assert files_named([spec]) == ["concepts.safetensors"], "its content decides which run it is"


def test_weights_come_from_the_pair(pair: ModelPair, tmp_path: Path) -> None:
    assert list(built("[{kind: LayerScale, a: 0.5, b: 0.25, strength: 0.5}]", pair, tmp_path)) == [
        iv.LayerScale.from_pair(pair, 0.5, 0.25).scaled(0.5)
    ]


def test_what_earlier_steps_found(pair: ModelPair, moe: ModelPair, rows: Prompts, tmp_path: Path) -> None:
    recording = wb.record(pair, rows, ["resid_post", "z"], positions="last")
    concepts = probes.concept_directions(recording, "mean", layer=1)
    probe = probes.head_probe(recording, folds=2)
    moved = probes.activation_delta(recording)
    experts = probes.expert_map(moe, rows, target="a")
    heads = probes.patching(pair, rows, "heads", metric="prob")
    results = {"rec": recording, "c": concepts, "p": probe, "m": moved, "h": heads, "x": experts}
    found = built(
        """
        - {kind: Offset, layer: 1, vector: {from: rec, layer: 1}}
        - {kind: Offset, layer: 1, vector: {from: rec, layer: 1, where: {label: a}, role: base}}
        - {kind: Offset, layer: 1, vector: {from: m, layer: 1}}
        - {kind: Offset, layer: 1, vector: {from: c}}
        - {kind: ConceptAblation, concepts: {from: c, directions: [0], to: mean}, positions: last}
        - {kind: HeadOffset, vectors: {from: p, first: 2}, strength: 3, positions: last}
        - {kind: HeadScale, scales: {from: h, first: 2, scale: 0.5}}
        - {kind: ExpertSwitch, off: {from: x, first: 2}}
        """,
        pair,
        tmp_path,
        results,
    )
    site = "blocks.1.hook_resid_post"
    tuned, base = recording["tuned"][site][:], recording["base"][site][:]
    first = torch.tensor([label == "a" for label in recording.index["label"]])
    best = heads.frame().head(2)
    assert list(found) == [
        iv.Offset(1, tuned.mean(0) - base.mean(0)),
        iv.Offset(1, base[first].mean(0) - base[~first].mean(0)),
        iv.Offset(1, moved.vectors[f"{site}/mean"][0]),
        iv.Offset(1, concepts.directions[0]),
        *concepts.recipe([0], "mean", positions="last"),
        *probe.recipe(2, 3.0, positions="last"),
        iv.HeadScale({f"L{row.layer}H{row.head}": 0.5 for row in best.itertuples()}),
        iv.ExpertSwitch(off=experts.ranking(2)),
    ]


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("[{kind: Offset, layer: 0, vector: {file: v.safetensors}}]", "holds 2 tensors: say which"),
        ("[{kind: Offset, layer: 0, vector: {file: v.safetensors, tensor: vv}}]", "Did you mean 'v'"),
        ("[{kind: Offset, layer: 0, vector: {file: none.safetensors}}]", "no readable safetensors file"),
        ("{file: none.safetensors}", "There is no recipe"),
        ("[{kind: HeadScale, scales: {L0X: 0}}]", "L0X"),
        ("[{kind: ExpertSwitch, off: [L0E1], mode: force}]", "say what off means"),
    ],
)
def test_a_tensor_that_is_not_there_is_a_sentence(pair: ModelPair, tmp_path: Path, text: str, phrase: str) -> None:
    save_file({"v": torch.ones(3), "w": torch.ones(3)}, tmp_path / "v.safetensors")
    with pytest.raises(UserError, match=phrase):
        built(text, pair, tmp_path)


RECIPES = [
    iv.Recipe([iv.Offset(1, torch.linspace(-1, 1, 64) / 3, strength=2.0, positions="last")]),
    iv.Recipe([iv.SubspaceKnob(1, torch.eye(64)[:2] / 7, torch.tensor([0.1, 0.2]), positions="last+generated")]),
    iv.Recipe([iv.ConceptAblation(1, torch.eye(64)[:1], mean=torch.ones(64) / 3)]),
    iv.Recipe([iv.Clamp(0, torch.ones(64) / 9, low=-1.5)]),
    iv.Recipe([iv.HeadScale({"L0H1": 0.0, "L1H0": torch.ones(16) / 3}), iv.HeadOffset({"L0H1": torch.ones(16) / 3})]),
    iv.Recipe([iv.ExpertSwitch(off=["L0E1", "L2E3"], on=["L1E0"], mode="drop", weight="max")]),
    iv.Recipe([iv.AdapterScale(0.25, {0: 0.5}, {"mlp": 0.0}), iv.LayerScale(0.5, 0.5)]),
    iv.Recipe([iv.AttentionScale(2.0, ["L0H0"], "first")]),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.interventions[0].kind)
def test_a_recipe_is_written_out_and_read_back_bit_for_bit(recipe: iv.Recipe, pair: ModelPair, tmp_path: Path) -> None:
    if any(isinstance(intervention, iv.LayerScale) for intervention in recipe):
        recipe = iv.Recipe(
            [intervention for intervention in recipe if not isinstance(intervention, iv.LayerScale)]
        )  # its tensors are the pair's
    whole = Experiment(
        name="x", pair={"base": "a", "tuned": "b"}, prompts={"p": {"rows": ["a"]}},
        recipes={"r": recipe_spec(recipe)}, steps={"s": {"do": "diff", "recipes": ["r"]}},
    )  # type: ignore[arg-type]  # fmt: skip
    again = Experiment.parse(whole.to_yaml())
    assert again == whole
    assert RecipeBuilder(pair, Materials(tmp_path), {}.__getitem__).build(again.recipes["r"]) == recipe


def test_what_the_file_cannot_say_is_refused() -> None:
    with pytest.raises(NotSupported, match="too many to write out"):
        recipe_spec(iv.Recipe([iv.Offset(0, torch.ones(5000))]))
    with pytest.raises(NotSupported, match="limited to tokens or rows"):
        recipe_spec(iv.Recipe([iv.Offset(0, torch.ones(4), positions=iv.Where(tokens=(3,)))]))
    with pytest.raises(NotSupported, match="Own cannot be written out"):
        recipe_spec(iv.Recipe([Own(0, torch.ones(4))]))


class Own(iv.Offset):
    """Somebody's intervention, of which no file says where its class is."""


def test_every_registered_intervention_can_be_written_in_a_file() -> None:
    """Made from its class where it has no schema of its own; none can be forgotten."""
    for kind in entries():
        spec = spec_of(kind)
        assert {"kind", "strength"} <= set(spec.model_fields), kind


def test_a_patch_and_a_shift_of_logits_are_made_from_their_classes(pair: ModelPair, tmp_path: Path) -> None:
    text = """
    - {kind: Patch, layer: 1, values: [[1.0, 2.0]], site: resid_mid, positions: last}
    - {kind: LogitShift, tuned: tuned, base: base, alpha: matched, positions: generated}
    - {kind: AdapterScale, scale: 0.5, layers: {1: 0.25}}
    - {kind: LogitMix, voices: {a: {model: tuned, weight: 1.5, prefix: "the "}, b: base}, own: 0.5}
    - {kind: LogitFusion, experts: {a: tuned}, base: base, weights: {a: 0.5}}
    """
    patch, shift, scale, mix, fusion = built(text, pair, tmp_path)
    assert mix.voices["a"].model is pair.tuned and mix.voices["a"].weight == 1.5 and mix.voices["b"].model is pair.base
    assert fusion.experts["a"] is pair.tuned and fusion.weights == {"a": 0.5}
    assert patch == iv.Patch(1, torch.tensor([[1.0, 2.0]]), "resid_mid", positions="last")
    assert shift.tuned is pair.tuned and shift.base is pair.base and shift.alpha == "matched"
    assert scale == iv.AdapterScale(0.5, layers={1: 0.25})
    for line, sentence in WRONG.items():
        with pytest.raises(ValidationError) as told:
            RecipeSpec.model_validate(read_yaml(line, "r"))
        assert sentence in str(told.value), line


def test_a_gate_is_written_beside_what_it_opens(pair: ModelPair, tmp_path: Path) -> None:
    text = """
    - {kind: HeadScale, scales: {L1H0: 0.0}, when: {layer: 0, direction: [1.0, 2.0], threshold: 0.5, reach: token}}
    - {kind: Offset, layer: 1, vector: [1.0, 0.0], when: {layer: 0, direction: [1.0, 2.0], threshold: 0.5}}
    """
    recipe = built(text, pair, tmp_path)
    direction = torch.tensor([1.0, 2.0])
    assert recipe == iv.Recipe([
        iv.HeadScale({"L1H0": torch.tensor(0.0)}, when=iv.Gate(0, direction, 0.5, reach="token")),
        iv.Offset(1, torch.tensor([1.0, 0.0]), when=iv.Gate(0, direction, 0.5)),
    ])  # fmt: skip
    again = RecipeSpec.model_validate(recipe_spec(recipe).plain())
    assert RecipeBuilder(pair, Materials(tmp_path), {}.__getitem__).build(again) == recipe


WRONG = {
    "- {kind: Ofset, layer: 1, vector: [1]}": "Did you mean 'Offset'",
    "- {kind: Offset, layr: 1, vector: [1]}": "Did you mean 'layer'",
    "- {kind: Offset, layer: 1}": "is missing",
    "- {layer: 1}": "it says what this is",
    "- {kind: LogitShift, tuned: other, base: base}": "'base' or 'tuned'",
}
