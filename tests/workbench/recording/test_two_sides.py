"""Base and tuned read prompts of their own, row for row the same questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.behaviour import behaviour_diff, known_unknown
from workbench.behaviour.texts import contained
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts
from workbench.recording.record_pair import record

MINE = [{"prompt": f"the {word}", "answer": " fox", "distractor": " dog"} for word in ("quick", "lazy", "brown", "big")]
THEIRS = [{**row, "prompt": f"a b c {row['prompt']}"} for row in MINE]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)


def test_each_side_reads_its_own(pair: ModelPair) -> None:
    both = record(pair, MINE, "resid_post", base_prompts=THEIRS)
    for role, rows in (("base", THEIRS), ("tuned", MINE)):
        alone = record(pair.models[role], rows, "resid_post")
        for site in both.sites:
            assert torch.equal(both[role][site][:], alone[role][site][:])
    assert both.roles == ["base", "tuned"] and both.config["base_prompts"] == Prompts.of(THEIRS).hash
    assert both.index["prompt"].tolist() == [0, 1, 2, 3]


def test_rows_that_do_not_line_up_are_refused(pair: ModelPair) -> None:
    with pytest.raises(UserError, match="do not line up"):
        record(pair, MINE, "resid_post", base_prompts=THEIRS, positions="all")
    with pytest.raises(UserError, match="3 base prompts for 4 prompts"):
        record(pair, MINE, "resid_post", base_prompts=THEIRS[:3])
    with pytest.raises(UserError, match="without store="):
        record(pair, MINE, "resid_post", base_prompts=THEIRS, store=None)


METRICS = ["accuracy", "prob", "logit_diff", "kl", "answer_diff", "kl_base_model", "contained", "same_as_base"]


def test_a_behaviour_diff_with_prompts_per_side(pair: ModelPair) -> None:
    found = behaviour_diff(pair, MINE, metrics=METRICS, base_prompts=THEIRS, max_new_tokens=3)
    mine = behaviour_diff(pair, MINE, metrics=METRICS[:3], max_new_tokens=3)
    theirs = behaviour_diff(pair, THEIRS, metrics=METRICS[:3], max_new_tokens=3)
    for metric in METRICS[:3]:
        assert found.value("tuned", metric) == pytest.approx(mine.value("tuned", metric), abs=1e-6)
        assert found.value("base", metric) == pytest.approx(theirs.value("base", metric), abs=1e-6)
    assert found.provenance.settings["base_prompts"] == Prompts.of(THEIRS).hash
    with pytest.raises(UserError, match="form of every row"):
        behaviour_diff(pair, MINE, base_prompts=THEIRS[:2])


def test_the_same_prompts_on_both_sides_are_the_plain_diff(pair: ModelPair) -> None:
    found, plain = (behaviour_diff(pair, MINE, metrics=METRICS, **more) for more in ({"base_prompts": MINE}, {}))
    np.testing.assert_allclose(found.table["estimate"], plain.table["estimate"], atol=1e-6)


def test_an_answer_inside_a_sentence_is_known(pair: ModelPair) -> None:
    assert contained("The capital of France is Paris.", "Paris") and contained(
        "the capital is paris, of course", "Paris"
    )
    assert not contained("The Parisian capital", "Paris") and not contained("", "Paris")
    said = pair.base.generate([row["prompt"] for row in MINE], max_new_tokens=3)
    rows = [{**row, "answer": text.strip()[-1:] or "x"} for row, text in zip(MINE, said, strict=True)]
    found = known_unknown(pair, rows, max_new_tokens=3)
    held = [contained(text, row["answer"]) for row, text in zip(rows, said, strict=True)]
    assert (found.rows[found.rows["model"] == "base"]["part"] == "known").tolist() == held
