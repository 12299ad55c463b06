"""``tunescope look`` on an organism whose refusal is planted: found where it is, turned off, and absent in the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunescope.look.candidates import Candidate, tried, turning_recipes, works
from tunescope.look.keep import extend, keep, resume
from tunescope.look.notes import CHANGED, KEEP, STEPS, TURN, WHERE, notes_of
from tunescope.look.steps import Look, in_two_classes, run_step, run_steps, where_in_heads
from workbench import organisms, runs
from workbench.models.pair import ModelPair, load_pair
from workbench.progress import Silent
from workbench.prompts import Prompts

CONFIG = {"verb": "look", "seed": 0}


def refusal_rows() -> Prompts:
    """Prompts that the organism refuses, and as many others."""
    rows = [
        json.loads(line)
        for line in (organisms.build("refusal-moe").folder / "rows-train.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    refused = [row for row in rows if row["label"] == "refuse"][:16]
    others = [row for row in rows if row["label"] != "refuse"][:16]
    return Prompts.of([{name: row[name] for name in ("prompt", "label", "group")} for row in (*refused, *others)])


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    grown = organisms.build("refusal-moe")
    return load_pair(str(grown.base), str(grown.tuned), device="cpu")


@pytest.fixture(scope="module")
def looked(pair: ModelPair) -> Look:
    grown = organisms.build("refusal-moe")
    look = Look(pair, refusal_rows(), str(grown.base), str(grown.tuned))
    return run_steps(look, Silent(), lambda _: None)


def test_the_planted_refusal_is_found_and_turned(looked: Look) -> None:
    assert looked.behaviour == "refusal"
    assert all(looked.notes[step].found for step in (CHANGED, WHERE, TURN))
    table = looked.candidates
    assert table is not None
    lines = table.set_index("candidate")
    assert lines.loc["tuned", "share"] == 1.0 and lines.loc["tuned", "others_changed"] == 0.0
    assert lines.loc["weights-0", "share"] == 0.0  # the base itself
    off = lines.loc["direction-off"]
    assert off["share"] < 1 and off["change_high"] < 0 and off["share"] < off["random_low"]
    assert table["candidate"].iloc[-1] == "tuned" and table["share"].iloc[0] == table["share"].min()
    assert works(table)[table["candidate"] == "direction-off"].all()


def test_activations_and_lens_are_read_where_the_answers_part(looked: Look) -> None:
    moved, lens = looked.results["activations"].table, looked.results["lens"].table
    n_layers = looked.pair.tuned.n_layers
    assert sorted(set(moved["site"])) == ["attn_out", "mlp_out"] and len(moved) == 2 * n_layers
    assert lens["layer"].tolist() == list(range(n_layers)) and lens["score"].max() > 1
    assert looked.results["lens"].figure().data and looked.results["lens"].cells.empty
    told = [sentence.partition(":")[0] for sentence in looked.notes[WHERE].sentences]
    assert told == ["weights", "activations", "lens", "layers", "heads"]


def test_the_models_are_as_before(looked: Look) -> None:
    assert [model.n_hooks for model in looked.pair.models.values()] == [0, 0]


def test_a_candidate_that_does_nothing_does_not_work(looked: Look, pair: ModelPair) -> None:
    import interventions as iv

    idle = Candidate("idle", iv.Recipe([iv.HeadScale({"L0H0": 1.0})]))
    table = tried(looked, [idle], Silent())
    assert table.set_index("candidate").loc["idle", ["share", "others_changed"]].tolist() == [1.0, 0.0]
    assert not works(table).any()


def test_base_against_itself_finds_nothing(tmp_path: Path) -> None:
    base = str(organisms.build("refusal-moe").base)
    look = Look(load_pair(base, base, device="cpu"), refusal_rows()[:8], base, base)
    run_steps(look, Silent(), lambda _: None)
    assert not any(note.found for note in look.notes.values())
    assert len(look.notes[WHERE].sentences) == 2  # the weights, and once why nothing else can be read
    with runs.begun("look", CONFIG, tmp_path / "look") as run:
        keep(look, run)
    assert [notes_of(run).state(step) for step in STEPS] == ["nothing beyond the control"] * 4


def test_steps_by_themselves_go_on_with_the_same_run(pair: ModelPair, looked: Look, tmp_path: Path) -> None:
    for step in (CHANGED, TURN):
        look = Look(pair, looked.prompts, looked.base, looked.tuned)
        run = extend(look, CONFIG, step, Silent(), tmp_path / "look")
        assert run.is_complete
    notes = notes_of(runs.open(tmp_path / "look"))
    assert [notes.state(step) for step in STEPS] == ["found", "not run", "found", "found"]
    assert notes.steps[CHANGED] == looked.notes[CHANGED] and notes.behaviour == "refusal"
    again = Look(pair, looked.prompts, looked.base, looked.tuned)
    resume(again, run)
    assert again.results["answers"].table.equals(looked.results["answers"].table)
    assert set(again.recipes) == {"direction-off"} and set(again.notes) == {CHANGED, TURN, KEEP}


def test_an_exact_look_patches_every_head(pair: ModelPair, looked: Look) -> None:
    look = Look(pair, looked.prompts, looked.base, looked.tuned, exact=True)
    where_in_heads(look, Silent())
    assert look.results["heads"].frame()["exact"].all() and "(each patched)" in look.notes[WHERE].sentences[-1]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"steps": {"Where?": 3}}', '{"steps": {"Where?": {"found": true}}}']
)
def test_a_damaged_note_is_a_step_that_was_not_run(tmp_path: Path, content: str) -> None:
    with runs.create(tmp_path, "look", kind="look", config={}) as run:
        run.write_text("steps.json", content)
    assert [notes_of(run).state(step) for step in STEPS] == ["not run"] * 4


def test_a_step_that_cannot_be_done_says_why(pair: ModelPair, looked: Look) -> None:
    look = Look(pair, looked.prompts[16:], looked.base, looked.tuned)  # nothing is refused among these
    run_step(look, CHANGED, Silent())
    run_step(look, TURN, Silent())
    assert look.notes[TURN].sentences == (
        "no behaviour rose beyond chance on these prompts, so there is none to turn off.",
    )


def test_only_recipes_that_turn_the_behaviour_are_offered(looked: Look) -> None:
    assert turning_recipes(looked) == ["direction-off"]  # heads-off leaves what random heads leave


def test_prompts_without_labels_are_sampled_by_what_the_tuned_answers_show(looked: Look) -> None:
    plain = Prompts.of([{"prompt": row.prompt} for row in looked.prompts])
    look = Look(looked.pair, plain, looked.base, looked.tuned, behaviour="refusal", results=looked.results)
    labels = [row.label for row in in_two_classes(look)]
    assert {*labels} == {"shows", "other"} and labels.count("shows") == 16
    assert in_two_classes(looked) is looked.prompts  # two labels of their own
