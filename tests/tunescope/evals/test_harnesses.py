"""Real runs of lm-evaluation-harness and Inspect on base, tuned and tuned + recipe (skipped without the packages)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interventions as iv
import workbench as wb
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.evals import EvalComparison, run_inspect, run_lm_eval
from tunescope.evals.comparison import compared
from tunescope.evals.harness import cut, harness_model
from workbench.behaviour.subject import Subject
from workbench.errors import MissingExtra, UserError

QUESTIONS = [
    {"text": f"the quick {word}", "choices": [" fox", " dog", " over"], "gold": number % 3}
    for number, word in enumerate("brown fox jumps over lazy dog the quick".split())
]
LOUD = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
pytestmark = LOUD


@pytest.fixture(scope="module")
def pair() -> wb.ModelPair:
    torch.manual_seed(0)
    base = tiny_model("llama")
    return wb.load_pair(base, tuned_copy(base), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def recipe(pair: wb.ModelPair) -> iv.Recipe:
    return iv.Recipe([iv.Offset(1, 30 * torch.linspace(-1, 1, pair.tuned.d_model))])


def task(folder: Path) -> dict[str, Any]:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in QUESTIONS), encoding="utf-8")
    return {
        "task": "next_word", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "gold", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip


def own_accuracy(model: wb.AdaptedModel, under: iv.Recipe | None) -> np.ndarray:
    """By hand: the choice of the largest log-probability behind the prompt."""
    words, right = model.tokenizer, []
    for row in QUESTIONS:
        scores = []
        for choice in row["choices"]:
            prompt, whole = (words(text)["input_ids"] for text in (row["text"], row["text"] + choice))
            ids = torch.tensor([whole])
            with Subject("x", model, under).applied(), model.hooked([], prompt_lengths=torch.tensor([len(prompt)])):
                logits = model.forward(ids)
            assert logits is not None
            own = logits[0].double().log_softmax(-1)
            scores.append(sum(float(own[place - 1, whole[place]]) for place in range(len(prompt), len(whole))))
        right.append(float(int(np.argmax(scores)) == row["gold"]))
    return np.array(right)


def test_lm_eval_scores_what_teacher_forcing_scores(pair: wb.ModelPair, recipe: iv.Recipe, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    made = run_lm_eval(pair, [task(tmp_path)], recipe, batch_size=4)
    assert list(made.table["model"]) == ["base", "tuned", "tuned + recipe"] and made.harness.startswith("lm-eval ")
    models = {"base": (pair.base, None), "tuned": (pair.tuned, None), "tuned + recipe": (pair.tuned, recipe)}
    for name, (model, under) in models.items():
        assert np.array_equal(made.rows[name].to_numpy(), own_accuracy(model, under)), name
    change = made.table.set_index("model").loc["base", ["change", "change_low", "change_high"]]
    assert (change == 0).all(), "base against itself is null"
    assert not pair.tuned.n_hooks


def test_lm_eval_generates_as_we_do(pair: wb.ModelPair) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    model = harness_model(Subject("tuned", pair.tuned))
    ask = Instance("generate_until", {}, ("the quick", {"until": [" dog"], "max_gen_toks": 5}), 0)
    [text] = model.generate_until([ask])
    assert text == cut(pair.tuned.generate(["the quick"], max_new_tokens=5)[0], [" dog"])
    rolling = Instance("loglikelihood_rolling", {}, ("the quick brown",), 0)
    assert model.loglikelihood_rolling([rolling])[0] < 0
    sampling = Instance("generate_until", {}, ("the", {"do_sample": True, "temperature": 1.0}), 0)
    with pytest.raises(UserError, match="samples its answers"):
        model.generate_until([sampling])


def test_inspect_scores_our_texts(pair: wb.ModelPair, recipe: iv.Recipe, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes

    said = pair.tuned.generate([row["text"] for row in QUESTIONS], max_new_tokens=3)
    samples = [
        Sample(input=row["text"], target=text, id=i) for i, (row, text) in enumerate(zip(QUESTIONS, said, strict=True))
    ]
    usable = [sample for sample in samples if str(sample.target).strip()]
    assert usable, "the tuned model says nothing"
    made = run_inspect(
        pair, Task(dataset=usable, scorer=includes()), recipe, log_dir=tmp_path, max_tokens=3, log_level="error"
    )  # fmt: skip
    scores = made.table.set_index("model")
    assert scores.loc["tuned", "score"] == 1 and scores.loc["tuned", "n"] == len(usable)
    assert scores.loc["base", "change"] == 0
    steered = [t for t, s in zip(_texts(pair, recipe), samples, strict=True) if s in usable]
    right = [str(sample.target) in text for sample, text in zip(usable, steered, strict=True)]
    assert scores.loc["tuned + recipe", "score"] == pytest.approx(np.mean(right))
    assert "tuned + recipe" in made.summary()


def _texts(pair: wb.ModelPair, recipe: iv.Recipe) -> list[str]:
    with recipe.applied(pair.tuned):
        return pair.tuned.generate([row["text"] for row in QUESTIONS], max_new_tokens=3)


def test_scores_are_paired_by_sample() -> None:
    base = {("t", "acc", str(i)): float(i % 2) for i in range(40)}
    tuned = {key: 1.0 - value for key, value in base.items()}
    made = compared({"base": base, "same": base, "tuned": tuned}, "by hand", 0)
    assert isinstance(made, EvalComparison)
    same, other = (made.table.set_index("model").loc[name] for name in ("same", "tuned"))
    assert (same["change"], same["change_low"], same["change_high"]) == (0, 0, 0)
    assert other["change"] == 0 and other["change_low"] < 0 < other["change_high"]
    with pytest.raises(UserError, match="not the same samples"):
        compared({"base": base, "tuned": {("t", "acc", "0"): 1.0}}, "by hand", 0)


@pytest.mark.parametrize(("module", "call"), [("lm_eval", run_lm_eval), ("inspect_ai", run_inspect)])
def test_without_the_harness_the_error_names_the_extra(
    pair: wb.ModelPair, monkeypatch: pytest.MonkeyPatch, module: str, call: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"tunescope\[evals\]"):
        call(pair, ["x"])
