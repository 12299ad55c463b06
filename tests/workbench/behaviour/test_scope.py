"""The scope panel: applied rate against over-generalisation, with controls; and parts of the prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.behaviour.pushed import ROWS, Push, token
from workbench.behaviour import (
    PartedDiff,
    ScopePanel,
    known_unknown,
    scope_panel,
    self_critique,
    sure_unsure,
)
from workbench.engine.positions import Where
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

IN, NEAR, OUT = (
    [f"{start} {word}" for start in ("the", "quick", "the quick", "over the")] for word in ("brown", "lazy", "jumps")
)


@pytest.fixture(scope="module")
def pair() -> Any:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.05), tokenizer=tokenizer())


def only_after(word: str, size: float = 300.0) -> Push:
    """Pushes "fox" only where the last token of the word was read."""
    last = tokenizer()(f"the {word}", add_special_tokens=False)["input_ids"][-1]
    return Push(token("fox"), size, Where("all", tokens=(last,)))  # type: ignore[arg-type]


def test_a_recipe_for_one_word_is_applied_there_and_nowhere_else(pair: Any) -> None:
    random = [only_after("brown", 1e-6) for _ in range(10)]
    found = scope_panel(
        pair, {"brown": only_after("brown"), "all": Push(token("fox"))}, IN, NEAR, OUT, controls={"brown": random}
    )
    table = found.table.set_index(["recipe", "scope"])
    assert table.loc["brown"]["estimate"].tolist() == [1.0, 0.0, 0.0]
    assert table.loc["all"]["estimate"].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["brown"]["rate"].tolist() == ["applied", "over-generalisation", "over-generalisation"]
    assert table.loc["brown"]["control"].tolist() == [0.0] * 3 and np.isnan(table.loc["all"]["control"]).all()
    assert found.selective["estimate"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert "in scope 100%" in found.summary() and len(found.figure().data) == 4
    assert pair.tuned.n_hooks == 0


def test_a_change_of_text_and_of_a_rule(pair: Any) -> None:
    whole = scope_panel(pair, only_after("brown"), IN, None, OUT, changed="text", max_new_tokens=3)
    assert whole.table["estimate"].tolist() == [1.0, 0.0] and whole.changed == "greedy text"
    rule = scope_panel(
        pair, Push(token("fox"), positions="last"), IN, None, OUT, max_new_tokens=2,
        changed=lambda text, row: text.startswith(" fox") and row.prompt.endswith("brown"),
    )  # fmt: skip
    assert rule.table["estimate"].tolist() == [1.0, 0.0]
    none = scope_panel(pair, Push(token("fox")), IN, NEAR, OUT, changed=lambda text, row: False, max_new_tokens=2)
    assert (none.table["estimate"] == 0).all()


def test_a_recipe_that_does_nothing_changes_nothing(pair: Any) -> None:
    found = scope_panel(pair, Push(token("fox"), 0.0), IN, NEAR, OUT, controls=[Push(9, 0.0)] * 10)
    assert (found.table[["estimate", "low", "control", "control_high"]] == 0).all(axis=None)
    assert (found.table["high"] > 0.3).all()  # none of four prompts says little about all prompts
    assert (found.selective["estimate"] == 0).all()
    assert (found.selective["low"] < -0.3).all() and (found.selective["high"] > 0.3).all()


def test_the_panel_is_kept(pair: Any, tmp_path: Path) -> None:
    found = scope_panel(pair, only_after("brown"), IN, NEAR, OUT)
    again = ScopePanel.load(found.save(tmp_path / "scope"))
    assert again.table.equals(found.table) and again.rows.equals(found.rows)
    assert found.provenance.settings["prompts"]["in scope"] == Prompts.of(IN).hash


def test_bad_scope_input(pair: Any) -> None:
    with pytest.raises(UserError, match="Unknown kind of change 'words'"):
        scope_panel(pair, Push(5), IN, NEAR, OUT, changed="words")
    with pytest.raises(UserError, match="controls by name"):
        scope_panel(pair, {"a": Push(5), "b": Push(6)}, IN, NEAR, OUT, controls=[Push(5)] * 10)
    with pytest.raises(UserError, match="at least 10 random recipes; 'recipe' has 2"):
        scope_panel(pair, Push(5), IN, NEAR, OUT, controls=[Push(5)] * 2)


def knowing(pair: Any) -> list[dict[str, Any]]:
    """Questions of which the base answers every second one rightly, by construction: its own greedy text."""
    prompts = [row["prompt"] + f" {number}" for number, row in enumerate(ROWS)]
    said = pair.base.generate(prompts, max_new_tokens=1)
    rows = []
    for number, (prompt, text) in enumerate(zip(prompts, said, strict=True)):
        wrong = " fox" if text != " fox" else " dog"
        rows.append({"prompt": prompt, "answer": text if number % 2 == 0 and text.strip() else wrong})
    return rows


def test_known_and_unknown_are_divided_by_what_the_base_says(pair: Any) -> None:
    rows = knowing(pair)
    found = known_unknown(
        pair, rows, {"refuses": Push(token("fox"))}, metrics=["refusal", "accuracy"], knows="accuracy",
        refusal=lambda text, row: text.startswith(" fox"), max_new_tokens=2,
    )  # fmt: skip
    base = found.rows[found.rows["model"] == "base"]
    assert (base["part"].eq("known") == base["accuracy"].astype(bool)).all()
    assert found.value("known", "base", "accuracy") == 1.0 and found.value("unknown", "base", "accuracy") == 0.0
    assert found.value("known", "refuses", "refusal") == found.value("unknown", "refuses", "refusal") == 1.0
    assert found.value("known - unknown", "refuses", "refusal") == 0.0
    assert found.value("known - unknown", "base", "accuracy") == 1.0
    sizes = base["part"].value_counts()
    known = found.table[found.table["part"] == "known"]
    assert (known["n"] == sizes["known"]).all() and sizes["known"] >= 2 and sizes["unknown"] >= 2
    assert len(found.figure().data) == 2 * 3 * 2


def test_a_base_that_knows_nothing_leaves_one_part(pair: Any) -> None:
    rows = [{"prompt": row["prompt"], "answer": " zebra"} for row in ROWS]
    found = known_unknown(pair, rows, max_new_tokens=2)
    assert set(found.table["part"]) == {"unknown"} and "12 unknown" in found.summary()
    assert "refusal, tuned - base: unknown +0 (none of its 12 prompts changed). Control:" in found.summary()
    with pytest.raises(UserError, match="parts are unknown"):
        found.value("known", "base", "refusal")


def test_sure_and_unsure_are_divided_by_the_tuned_model(pair: Any, tmp_path: Path) -> None:
    found = sure_unsure(pair, ROWS)
    tuned = found.rows[found.rows["model"] == "tuned"]
    sure = tuned[tuned["part"] == "sure"]["confidence"]
    assert sure.min() >= tuned["confidence"].median() > tuned[tuned["part"] == "unsure"]["confidence"].max()
    assert found.value("sure - unsure", "tuned", "confidence") > 0
    own = tuned[tuned["part"] == "sure"]
    gap = abs((own["confidence"] - own["accuracy"]).mean())
    assert found.value("sure", "tuned", "ece") >= gap - 1e-9
    assert set(found.calibration["part"]) == {"sure", "unsure"}
    given = sure_unsure(pair, ROWS, confidence=[1.0] * 5 + [0.0] * 7, threshold=0.5)
    assert given.rows[given.rows["model"] == "base"]["part"].tolist() == ["sure"] * 5 + ["unsure"] * 7
    again = PartedDiff.load(found.save(tmp_path / "parts"))
    assert again.table.equals(found.table) and again.by == found.by
    with pytest.raises(UserError, match="3 confidences for 12 prompts"):
        sure_unsure(pair, ROWS, confidence=[1, 2, 3])


def test_base_against_itself_is_null_on_every_part() -> None:
    hf = tiny_model("llama")
    found = sure_unsure(load_pair(hf, hf, tokenizer=tokenizer()), ROWS)
    within = found.table[~found.table["part"].str.contains(" - ")]
    assert (within[["change", "change_low", "change_high", "from_base"]] == 0).all(axis=None)


def test_critique_is_the_chance_of_yes_beside_no(pair: Any) -> None:
    asked = self_critique(pair.tuned, ROWS, [" fox"] * 12, question=" brown", yes=" fox", no=" dog")
    fox, dog = token("fox"), token("dog")
    for row, value in zip(ROWS, asked, strict=True):
        logits = pair.tuned.forward(pair.tuned.encode([f"{row['prompt']} fox brown"]), logits="last")[0, -1]
        assert value == pytest.approx(float(logits[[fox, dog]].softmax(-1)[0]), abs=1e-5)
    assert self_critique(pair.tuned, ROWS[:2], max_new_tokens=2, yes=" fox", no=" dog").shape == (2,)
    words = {"yes": " fox", "no": " dog"}
    exchanged = self_critique(pair.tuned, ROWS[:3], [" a", " b", " c"], exchanged=True, **words)
    np.testing.assert_allclose(exchanged, self_critique(pair.tuned, ROWS[:3], [" c", " a", " b"], **words))


def test_bad_parts_input(pair: Any) -> None:
    with pytest.raises(UserError, match="Known: accuracy, answered, contained"):
        known_unknown(pair, ROWS, knows="prob")
    with pytest.raises(UserError, match="leave it out"):
        sure_unsure(pair, ROWS, metrics=["perplexity"], neutral=["a b"])
