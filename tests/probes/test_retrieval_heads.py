"""Retrieval heads: a hand-built copier scores 1.0, everything else 0; scoring against the input token breaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

from probes.needles.decoding import answer, copy_scores
from probes.needles.heads import RetrievalHeads, retrieval_heads
from probes.needles.masking import MaskTest, mask_heads, mask_hooks
from probes.needles.trials import Needle, Trial, needle_trials
from tests.tiny import tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

WORDS, PLACES = 24, 32
COPIER = (1, 0)


def induction_model() -> AdaptedModel:
    """Layer 0 head 0 carries each token to the next position; layer 1 head 0 finds where the present token came
    before and copies what followed. The residual is [token | position | previous token | output], all one-hot."""
    width = 3 * WORDS + PLACES
    token, place = slice(0, WORDS), slice(WORDS, WORDS + PLACES)
    before, out = slice(WORDS + PLACES, 2 * WORDS + PLACES), slice(2 * WORDS + PLACES, width)
    config = tf.GPT2Config(
        vocab_size=WORDS, n_embd=width, n_layer=2, n_head=2, n_positions=PLACES, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = tf.GPT2LMHeadModel(config).eval()
    d_head = width // 2
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "ln" in name and "weight" in name else 0.0)
        hf.transformer.wte.weight[:, token] = torch.eye(WORDS)
        hf.transformer.wpe.weight[:, place] = torch.eye(PLACES)
        hf.lm_head.weight[:, out] = torch.eye(WORDS)
        first, second = (block.attn for block in hf.transformer.h)
        qkv = first.c_attn.weight.view(width, 3, 2, d_head)  # Conv1D: [in, out]
        qkv[place, 0, 0, :PLACES] = 30 * torch.eye(PLACES).roll(-1, 1)  # the query of position p is p - 1
        qkv[place, 1, 0, :PLACES] = torch.eye(PLACES)
        qkv[token, 2, 0, :WORDS] = torch.eye(WORDS)
        first.c_proj.weight[:WORDS, before] = torch.eye(WORDS)
        qkv = second.c_attn.weight.view(width, 3, 2, d_head)
        qkv[token, 0, 0, :WORDS] = 30 * torch.eye(WORDS)
        qkv[before, 1, 0, :WORDS] = torch.eye(WORDS)
        qkv[token, 2, 0, :WORDS] = torch.eye(WORDS)
        second.c_proj.weight[:WORDS, out] = torch.eye(WORDS)
    return AdaptedModel(hf, None, role="model", name="induction")


def trials(n: int = 8) -> list[Trial]:
    """Tokens 1-8 are the haystack, 10-15 the needle; the prompt ends with the needle's first token, 10."""
    made = []
    for seed in range(n):
        hay = np.random.default_rng(seed).integers(1, 9, 12).tolist()
        at = 2 + seed % 6
        made.append(Trial((*hay[:at], *range(10, 16), *hay[at:], 10), at + 1, at + 6, seed))
    return made


def test_the_copier_scores_one_and_the_others_zero() -> None:
    found = retrieval_heads(induction_model(), trials(), max_new_tokens=5)
    best = found.frame().iloc[0]
    assert (best.layer, best["head"], best.score, best.active) == (*COPIER, 1.0, 1.0) and found.heads() == ["L1H0"]
    assert best.q < 0.05 and best.control < 0.2 and found.kept == {"model": (8, 8)}
    assert (found.frame().score[1:] == 0).all() and found.provenance.forward_passes == 8 * 6


def test_scoring_against_the_input_token_breaks() -> None:
    """The copier looks at the token it is about to write, not at the one it has just read."""
    model, trial = induction_model(), trials(1)[0]
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
    model = induction_model()
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
        base, tuned = induction_model(), induction_model()

    found = retrieval_heads(Pair(), trials(), max_new_tokens=5)
    assert found.agreement == {"spearman": pytest.approx(1.0), "jaccard": 1.0} and (found.table.change == 0).all()
    back = RetrievalHeads.load(found.save(f"{tmp_path}/retrieval"))
    assert back.kept == found.kept and back.frame().equals(found.frame())
    assert "tuned 8 of 8" in found.figure().layout.title.text


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
    with pytest.raises(UserError, match="already holds"):
        needle_trials(hay + needle.text, [needle], tokenizer(), lengths=[60])
