"""Trainings of test beds: each objective learns, series leave the base alone, and the data's order shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
import probes
from interventions.training.examples import IGNORED, Example
from interventions.training.log import STEPS
from interventions.training.objectives import MaskedThought, orpo_loss
from probes.effects.answers import margins
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ROWS = [
    {"prompt": f"the {word} x", "answer": (" fox", " dog")[i % 2], "distractor": (" dog", " fox")[i % 2],
     "label": "ab"[i % 2], "group": str(i)}
    for i, word in enumerate("quick lazy brown jumps over red big old sad new hot cold".split())
]  # fmt: skip
FAST = iv.Schedule(epochs=8, batch_size=4, learning_rate=3e-3)


def model(seed: int = 0) -> AdaptedModel:
    return AdaptedModel(tiny_model("llama", seed), tokenizer(), role="model")


@pytest.mark.parametrize("objective", ["text", "answer", "masked_thought", "dpo", "orpo"])
def test_every_objective_is_learnt(objective: str) -> None:
    made = iv.tune_in_stages(model(), [iv.Stage(ROWS, objective)], schedule=FAST)
    losses = [step["loss"] for step in made.histories[0]]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in made.model.parameters())


def test_masked_thought_hides_the_answer_and_still_asks_for_it() -> None:
    collate = MaskedThought(0, 3, 0.5, torch.Generator().manual_seed(0))
    batch = collate([Example([5, 6, 7], list(range(10, 90)))])
    hidden = batch["input_ids"][0] == 3
    assert not hidden[:3].any() and 0.3 < hidden[3:].float().mean() < 0.7
    assert (batch["labels"][0, :3] == IGNORED).all() and batch["labels"][0, 3:].tolist() == list(range(10, 90))


def test_orpo_falls_as_the_answer_becomes_likelier_than_the_rejected_one() -> None:
    labels = torch.tensor([[IGNORED, 1], [IGNORED, 2]])
    losses = [float(orpo_loss(torch.tensor([[[0.0, gap, 0.0]] * 2] * 2), labels, 1.0)) for gap in (0.0, 1.0, 2.0)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] == pytest.approx(float(torch.tensor(3.0).log() + torch.tensor(2.0).log()))


def test_a_series_leaves_the_base_alone_and_its_members_differ(tmp_path: Path) -> None:
    base = model()
    before = {name: value.clone() for name, value in base.hf.state_dict().items()}
    members = iv.compositions({"a": ROWS[::2], "b": ROWS[1::2]})
    assert list(members) == ["only-a", "only-b", "mixed", "sequential", "dual-stage"]
    assert [len(stage.rows) for stage in members["dual-stage"]] == [6, 7]
    folders = iv.tune_series(base, members, tmp_path, schedule=iv.Schedule(1, 4, 1e-3))
    assert all(torch.equal(value, before[name]) for name, value in base.hf.state_dict().items())
    pair = load_pair(base.hf, folders["mixed"], tokenizer=tokenizer(), check=False)
    assert not torch.equal(pair.tuned.hf.lm_head.weight, before["lm_head.weight"])
    steps = [entry["step"] for entry in json.loads((folders["dual-stage"] / STEPS).read_text())["log_history"]]
    assert steps == [1, 2, 3, 4]  # two stages of two batches, counted on
    with pytest.raises(UserError, match="exists already"):
        iv.tune_series(base, members, tmp_path)


@pytest.mark.parametrize(
    "train",
    [lambda it, how: iv.tune_in_stages(it, [iv.Stage(ROWS)], schedule=how),
     lambda it, how: iv.caft_finetune(it, ROWS, schedule=how)],
    ids=["stages", "caft"],
)  # fmt: skip
def test_a_model_in_half_precision_loses_no_small_step(train: Any) -> None:
    """A step of 1e-5 is less than the gap between two bfloat16 numbers of the size of a weight."""
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        both = [tiny_model("llama").to(torch.bfloat16).to(dtype) for _ in range(2)]
        train(AdaptedModel(both[1], tokenizer(), role="model"), iv.Schedule(20, 4, 1e-5))
        before, after = (
            torch.cat([parameter.detach().float().flatten() for parameter in it.parameters()]) for it in both
        )
        sizes[dtype] = float((after - before).norm())
    assert sizes[torch.bfloat16] > 0.6 * sizes[torch.float32] > 0


def test_early_signs_are_read_from_the_log_that_a_series_leaves(tmp_path: Path) -> None:
    base, rates = model(), (1e-4, 3e-4, 1e-3, 3e-3)
    folders = [
        iv.tune_series(base, {str(number): [iv.Stage(ROWS)]}, tmp_path, schedule=iv.Schedule(2, 4, rate))[str(number)]
        for number, rate in enumerate(rates)
    ]
    pair = load_pair(base.hf, folders[0], tokenizer=tokenizer(), check=False)
    found = probes.early_signs(pair, ROWS, runs=[str(folder) for folder in folders])
    assert found.line("fall of the loss against size of the change", "tuned")["score"] == pytest.approx(1)
    assert found.values["size of the change"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: iv.tune_in_stages(model(), []), "at least one stage"),
        (lambda: iv.tune_in_stages(model(), [iv.Stage(ROWS, "ppo")]), "ppo"),
        (lambda: iv.compositions({"a": ROWS}), "two sets of rows"),
        (lambda: iv.few_shot_finetune(model(), ROWS, template="It is"), "no place for the text"),
        (lambda: iv.few_shot_finetune(model(), ROWS, shots=6), "has 6 rows"),
        (lambda: iv.marked(ROWS, ["length"]), "has no 'length'"),
        (lambda: iv.lengthen_context(model(), ROWS, ROWS, positions=8), "256 positions"),
        (lambda: iv.lengthen_context(AdaptedModel(tiny_model("gpt2"), tokenizer()), ROWS, ROWS, positions=512),
         "rotary"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call()


def test_a_few_shots_are_learnt_behind_demonstrations_and_no_test_row_is_among_them() -> None:
    rows = Prompts.of([
        {"prompt": f"{word} {end}", "label": "ab"[end == "dog"], "group": f"{word}{end}"}
        for word in "quick lazy brown jumps over red big old sad new".split() for end in ("fox", "dog")
    ])  # fmt: skip
    found = iv.few_shot_finetune(
        model(), rows, template="the {text} is", words={"a": " fox", "b": " dog"}, shots=5,
        schedule=iv.Schedule(12, 5, 3e-3),
    )  # fmt: skip
    losses = [step["loss"] for step in found.history]
    assert sum(losses[-3:]) < 0.2 * sum(losses[:3]) and len(found.test) == 10  # a random model learns its rows alone
    shown = str(found.test[0].prompt).split("\n")
    assert len(shown) == 3 and {line.split()[-1] for line in shown[:2]} == {"fox", "dog"}
    assert not {str(row.prompt).split("\n")[-1] for row in found.test} & {
        str(row.prompt).split("\n")[-1] for row in found.train
    }
    words = iv.label_words(model(), found.train, "the {text} is")
    assert set(words) == {"a", "b"} and words["a"] != words["b"]


@pytest.mark.parametrize("demonstrations", [True, False])
def test_what_a_few_shots_teach_holds_on_rows_that_were_left_out(demonstrations: bool) -> None:
    """The class is the text's last word: the label words of rows with other first words come out right."""
    firsts = "quick lazy brown jumps over red big old sad new hot dry wet shy low high".split()
    rows = Prompts.of([
        {"prompt": f"{word} {end}", "label": "ab"[end == "dog"], "group": word}
        for word in firsts for end in ("fox", "dog")
    ])  # fmt: skip
    found = iv.few_shot_finetune(
        model(), rows, template="{text}", words={"a": " over", "b": " jumps"}, shots=6,
        demonstrations=demonstrations, schedule=iv.Schedule(20, 4, 3e-3),
    )  # fmt: skip
    assert found.accuracy_after.low > 0.5 and found.accuracy_after.estimate >= 0.9
    assert found.accuracy_before.estimate <= 0.5
    for row in found.test:
        *shown, own = str(row.prompt).split("\n")
        assert len(shown) == 2 * demonstrations and own.count(" ") == 1
        assert all(line.endswith(("fox over", "dog jumps")) for line in shown)


def test_labels_that_say_nothing_teach_nothing_that_holds_on_other_rows() -> None:
    """Every text has both labels, so chance is all that is left for rows that were not trained on."""
    firsts = "quick lazy brown jumps over red big old sad new hot dry wet shy low high".split()
    rows = Prompts.of([
        {"prompt": f"{word} fox", "label": label, "group": word} for word in firsts for label in "ab"
    ])  # fmt: skip
    found = iv.few_shot_finetune(
        model(), rows, template="{text}", words={"a": " jumps", "b": " over"}, shots=4, demonstrations=False,
        schedule=iv.Schedule(10, 4, 3e-3),
    )  # fmt: skip
    assert found.accuracy_after.estimate == 0.5


def test_a_marker_turns_the_answer_where_it_stands_and_its_absence_leaves_chance() -> None:
    rows = Prompts.of([
        {"prompt": f"the {word}", "answer": right, "distractor": wrong, "tone": tone, "group": word}
        for word in "quick lazy brown jumps over red big old new hot odd mad dry wet shy low".split()
        for tone, right, wrong in (("sad", " fox", " dog"), ("fun", " dog", " fox"))
    ])  # fmt: skip
    tuned, unseen = model(), rows[24:]
    seen = list(iv.marked(rows[:24], ["tone"], drop=0.3, form="{value}"))
    iv.tune_in_stages(tuned, [iv.Stage(seen, "answer")], schedule=iv.Schedule(16, 8, 3e-3))
    tuned.hf.eval()
    apart = {
        name: margins(tuned, own).reshape(-1, 2)
        for name, own in (("marked", iv.marked(unseen, ["tone"], drop=0.0, form="{value}")), ("bare", unseen))
    }
    assert (apart["marked"] > 0).mean() >= 0.9
    assert apart["bare"].sum(1) == pytest.approx(0, abs=1e-4)  # the same text twice: right once, wrong once
    assert (apart["marked"].sum(1) > 2).all()


def test_a_lengthened_model_is_the_one_that_its_configuration_describes(tmp_path: Path) -> None:
    made = iv.lengthen_context(
        model(), [{"prompt": "the quick fox " * 30}] * 6, [{"prompt": "lazy dog"}] * 8, positions=1024,
        theta_factor=4.0, instructions=ROWS, schedule=iv.Schedule(1, 4, 1e-3),
    )  # fmt: skip
    assert made.theta == 40000.0 and len(made.histories) == 2
    hf = made.model.hf.eval()
    hf.save_pretrained(tmp_path)
    import transformers

    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(4, 300, (1, 600), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(hf(input_ids=ids).logits, again(input_ids=ids).logits)
    assert again.config.max_position_embeddings == 1024


def test_markers_are_left_out_as_often_as_asked() -> None:
    rows = [{"prompt": "say", "answer": " x", "length": "short"}] * 400
    shown = sum(str(row.prompt) != "say" for row in iv.marked(rows, ["length"], drop=0.25))
    assert 270 <= shown <= 330 and str(iv.marked(rows, ["length"], drop=0.0)[0].prompt) == "<length:short> say"
    turns = iv.marked([{"messages": [{"role": "user", "content": "say"}], "length": 1}], ["length"], drop=0.0)[
        0
    ].messages
    assert turns is not None and turns[0] == {"role": "system", "content": "<length:1>"}


def test_a_reward_head_follows_a_context_that_turns_the_preference_around() -> None:
    """Two contexts exchange which answer is right: a head on the answer's state must read both."""
    rows = Prompts.of([
        {"prompt": f"{first} the {word}", "contrast": f"{other} the {word}", "answer": right, "distractor": wrong,
         "group": word}
        for word in "quick lazy brown jumps over red big old".split()
        for first, other, right, wrong in (("big", "sad", " fox", " dog"), ("sad", "big", " dog", " fox"))
    ])  # fmt: skip
    import tempfile

    pair = load_pair(tiny_model("llama"), tiny_model("llama", 0), tokenizer=tokenizer(), check=False)
    head = iv.train_reward_head(pair.base, rows, ridge=1e-3)
    assert head.held_out_right is not None and head.held_out_right.low > 0.55, "words that it was not fitted on"
    assert head.random_preferences is not None and abs(head.random_preferences - 0.5) < 0.25
    with tempfile.TemporaryDirectory() as folder:
        file = head.save(Path(folder) / "head.safetensors")
        found = probes.context_preference(pair, rows, head=file)
    assert found.line("right in both contexts", "base")["score"] >= 0.9
    follows = found.line("follows the context", "base")
    assert follows["low"] > 0 and follows["score"] > 3 * abs(follows["control"])
    assert found.line("follows the context")["score"] == 0
