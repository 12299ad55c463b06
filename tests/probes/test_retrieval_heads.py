"""Retrieval heads: a hand-built copier scores 1.0, everything else 0; scoring against the input token breaks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from probes.needles.decoding import answer, copy_scores
from probes.needles.heads import RetrievalHeads, retrieval_heads
from probes.needles.masking import MaskTest, mask_heads, mask_hooks
from probes.needles.trials import QUESTION, Needle, Trial, needle_trials
from tests.probes.copier import copier
from tests.tiny import tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

COPIER = (1, 0)


def trials(n: int = 8) -> list[Trial]:
    """Tokens 1-8 are the haystack, 10-15 the needle; the prompt ends with the needle's first token, 10."""
    made = []
    for seed in range(n):
        hay = np.random.default_rng(seed).integers(1, 9, 12).tolist()
        at = 2 + seed % 6
        made.append(Trial((*hay[:at], *range(10, 16), *hay[at:], 10), at + 1, at + 6, seed))
    return made


def test_the_copier_scores_one_and_the_others_zero() -> None:
    found = retrieval_heads(copier(), trials(), max_new_tokens=5)
    best = found.frame().iloc[0]
    assert (best.layer, best["head"], best.score, best.active) == (*COPIER, 1.0, 1.0) and found.heads() == ["L1H0"]
    assert best.q < 0.05 and best.control < 0.2 and found.kept == {"model": (8, 8)}
    assert (found.frame().score[1:] == 0).all() and found.provenance.forward_passes == 8 * 6


def test_scoring_against_the_input_token_breaks() -> None:
    """The copier looks at the token it is about to write, not at the one it has just read."""
    model, trial = copier(), trials(1)[0]
    found = answer(model, trial, 5)
    assert found.outputs == [11, 12, 13, 14, 15]
    right = copy_scores(found.attended, found.outputs, trial.ids, trial.start, trial.end)
    wrong = copy_scores(found.attended, found.inputs, trial.ids, trial.start, trial.end)
    shifted = copy_scores(found.attended, [0, *found.outputs[:-1]], trial.ids, trial.start, trial.end)
    assert right[COPIER] == 1.0 and wrong[COPIER] == 0.0 and shifted[COPIER] == 0.0


def test_a_stuck_head_counts_each_position_once() -> None:
    stuck = np.full((6, 1, 1), 3)
    assert copy_scores(stuck, [7] * 6, [1, 2, 7, 7, 7, 1], 2, 5)[0, 0] == pytest.approx(1 / 3)


def test_masking_the_copier_breaks_copying_and_the_idle_heads_do_not(tmp_path: object) -> None:
    model = copier()
    found = mask_heads(model, trials(), ["L1H0"], counts=[1], max_new_tokens=5, controls=10)
    start, masked = found.table.sort_values("count").itertuples()
    assert start.score == 1.0 and masked.score < 0.3 and masked.control == 1.0 and masked.q < 0.05
    for idle in ("L0H1", "L1H1"):
        assert mask_heads(model, trials(2), [idle], counts=[1], max_new_tokens=5).table.score.min() == 1.0
    back = MaskTest.load(found.save(f"{tmp_path}/mask"))
    assert back.frame().equals(found.frame()) and len(found.figure().data) == 3 and model.n_hooks == 0


def test_masks_are_what_they_say() -> None:
    """zero: the head's block of z is 0; uniform: z is the running mean of V; mean: z is its mean over the prompt."""
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    trial = Trial(tuple(range(10, 30)), 3, 6)
    ids = torch.tensor([trial.ids])

    def seen(hooks: list[SiteHook]) -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        readers = [
            SiteHook(Site(kind, 1), lambda value, ctx, kind=kind: kept.__setitem__(kind, value.clone()))
            for kind in "zv"
        ]
        with model.hooked(hooks), model.hooked(readers):
            model.forward(ids)
        return kept

    plain = seen([])
    assert (seen(mask_hooks(model, [(1, 2)], "zero", trial))["z"][:, :, 2] == 0).all()
    uniform = seen(mask_hooks(model, [(1, 2)], "uniform", trial))
    running = uniform["v"][:, :, 1].cumsum(1) / torch.arange(1, 21)[None, :, None]  # heads 2 and 3 share value head 1
    assert torch.allclose(uniform["z"][:, :, 2], running, atol=1e-5)
    assert torch.allclose(uniform["z"][:, :, 0], plain["z"][:, :, 0], atol=1e-5)
    mean = seen(mask_hooks(model, [(1, 2)], "mean", trial))["z"][0, :, 2]
    assert torch.allclose(mean, plain["z"][0, :, 2].mean(0).expand_as(mean), atol=1e-6)


def test_both_models_of_a_pair_are_compared(tmp_path: object) -> None:
    class Pair:
        base, tuned = copier(), copier()

    found = retrieval_heads(Pair(), trials(), max_new_tokens=5)
    assert found.agreement == {"spearman": pytest.approx(1.0), "jaccard": 1.0} and (found.table.change == 0).all()
    back = RetrievalHeads.load(found.save(f"{tmp_path}/retrieval"))
    assert back.kept == found.kept and back.frame().equals(found.frame())
    assert "tuned 8 of 8" in found.figure().layout.title.text


def test_an_answer_beyond_the_model_s_positions_is_refused_before_the_first_trial() -> None:
    long = Trial((*range(10, 16), *range(1, 9), *range(1, 9), 10), 1, 6)
    fitting = retrieval_heads(copier(), [*trials(), long], max_new_tokens=10)  # 23 + 10 tokens, the last is not read
    assert fitting.kept == {"model": (9, 9)}
    with pytest.raises(UserError, match="longest trial has 23 tokens and an answer of 11 would pass the 32 positions"):
        retrieval_heads(copier(), [*trials(), long], max_new_tokens=11)
    with pytest.raises(UserError, match="would pass the 32 positions of the model model"):
        mask_heads(copier(), [long], ["L1H0"], counts=[1])


def test_no_trial_kept_is_not_measurable_rather_than_zero() -> None:
    blank = AdaptedModel(tiny_model("gpt2"), None, role="base")
    with pytest.raises(UserError, match="base model are not measurable: it answered none of 8 trials"):
        retrieval_heads(blank, trials(), max_new_tokens=3)
    with pytest.raises(UserError, match="no needle trials"):
        retrieval_heads(blank, [])


def test_needles_are_hidden_behind_sentences_and_located_exactly() -> None:
    hay = "The quick dog jumps. The lazy fox runs over it. A brown dog sleeps. " * 6
    needle = Needle("What is the code?", "The secret code is zebra.")
    made = needle_trials(hay, [needle], tokenizer(), lengths=[60, 120], depths=[0.0, 0.5, 1.0])
    assert len(made) == 6
    for trial in made:
        hidden = tokenizer().decode(trial.ids[trial.start : trial.end])
        assert needle.text in hidden and len(hidden) <= len(needle.text) + 2
        text = tokenizer().decode(trial.ids, skip_special_tokens=True)
        assert text.endswith("Answer:") and text.split(needle.text)[0].strip()[-1:] in ("", ".")
    assert made[0].start < made[1].start < made[2].start
    with pytest.raises(UserError, match="asks for 5000"):
        needle_trials(hay, [needle], tokenizer(), lengths=[5000])
    with pytest.raises(UserError, match="asks for 0: ask for 1 or more"):
        needle_trials(hay, [needle], tokenizer(), lengths=[0])
    with pytest.raises(UserError, match="already holds"):
        needle_trials(hay + needle.text, [needle], tokenizer(), lengths=[60])
    with pytest.raises(UserError, match="Needle 1 is empty"):
        needle_trials(hay, [needle, Needle("What?", " ")], tokenizer(), lengths=[60])


def test_the_template_ends_the_prompt_and_needs_a_place_for_the_question() -> None:
    hay, needle = "The quick dog jumps. The lazy fox runs. " * 6, Needle("What {now}?", "The code is zebra.")
    for template in (" Q: {question} A: {", QUESTION):
        (trial,) = needle_trials(hay, [needle], tokenizer(), lengths=[40], depths=[0.0], template=template)
        text = tokenizer().decode(trial.ids, skip_special_tokens=True)
        assert text.endswith(template.replace("{question}", "What {now}?"))
    with pytest.raises(UserError, match=r"The template ' Answer:' has no place for the question: write \{question\}"):
        needle_trials(hay, [needle], tokenizer(), lengths=[40], template=" Answer:")


@pytest.mark.parametrize("opening", ["", "<s>"])
def test_with_a_chat_template_haystack_and_question_are_one_user_turn(opening: str) -> None:
    words = copy.deepcopy(tokenizer())
    words.chat_template = opening + "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
    hay, needle = "The quick dog jumps. The lazy fox runs. " * 6, Needle("What?", "The code is zebra.")
    (trial,) = needle_trials(hay, [needle], words, lengths=[40], depths=[0.5])
    text = words.decode(trial.ids)
    assert text.startswith(f"{opening}[user] The quick") and text.endswith("[assistant]")
    assert needle.text in words.decode(trial.ids[trial.start : trial.end])
    (plain,) = needle_trials(hay, [needle], words, lengths=[40], depths=[0.5], chat=False)
    assert plain == needle_trials(hay, [needle], tokenizer(), lengths=[40], depths=[0.5])[0]
    assert len(trial.ids) > len(plain.ids)
