"""A head's words: what is planted in its output is read, equal models say the same, a silent head says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probes.head_writes import HeadWords, head_words
from probes.selection import head_selection
from tests.mixed_families import mixed_model
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair

PROMPTS = ["the quick brown fox", "a lazy dog", "jumps over the the the", "fox and dog", "brown", "quick dog"]
LAYER, HEAD = 1, 2


def pair(say: int | None = None) -> ModelPair:
    """A copy whose head L1H2 writes only along one token's unembedding, or nothing (``say`` -1)."""
    base, tuned = tiny_model("llama"), tiny_model("llama")
    if say is not None:
        attention = tuned.model.layers[LAYER].self_attn
        width = attention.o_proj.in_features // tuned.config.num_attention_heads
        part = attention.o_proj.weight.data[:, HEAD * width : (HEAD + 1) * width]
        part.zero_()
        if say >= 0:
            attention.v_proj.weight.data.abs_()
            part[:, :] = tuned.lm_head.weight.data[say][:, None]
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def test_the_planted_token_moves_most_and_beyond_random_writes() -> None:
    words = head_words(pair(say=7), PROMPTS, LAYER, HEAD)
    rows = words.table[words.table["model"] == "tuned"]
    most = rows.iloc[int(rows["score"].abs().to_numpy().argmax())]
    assert most["token_id"] == 7 and not most["control_low"] <= most["score"] <= most["control_high"]
    assert words.provenance.n_prompts == len(PROMPTS) and (words.table["n"] == len(PROMPTS)).all()
    assert (rows["low"] <= rows["score"] + 1e-9).all() and (rows["score"] <= rows["high"] + 1e-9).all()


def test_a_silent_head_says_nothing_and_equal_models_say_the_same() -> None:
    silent = head_words(pair(say=-1), PROMPTS, LAYER, HEAD)
    assert silent.norm["tuned"] == 0 and silent.norm["base"] > 0
    assert silent.table.query("model == 'tuned'")["score"].abs().max() < 1e-5
    same = head_words(pair(), PROMPTS, LAYER, HEAD).table
    base, tuned = (same[same["model"] == name]["score"].to_numpy() for name in ("base", "tuned"))
    assert base == pytest.approx(tuned)


def test_the_score_is_the_logits_with_minus_without_the_head() -> None:
    """Against a second forward pass in which the final residual lacks the write."""
    two = pair()
    words = head_words(two, PROMPTS[:2], LAYER, HEAD)
    model = two.tuned
    kept: dict[str, torch.Tensor] = {}
    inner = model.inner
    o_proj = inner.model.layers[LAYER].self_attn.o_proj
    width = o_proj.in_features // model.n_heads
    changes = []
    for prompt in PROMPTS[:2]:
        hooks = [
            o_proj.register_forward_pre_hook(lambda _m, args: kept.update(z=args[0][0, -1])),
            inner.model.layers[-1].register_forward_hook(
                lambda _m, _a, out: kept.update(end=(out[0] if isinstance(out, tuple) else out)[0, -1])
            ),
        ]
        with torch.no_grad():
            inner(model.encode([prompt]).input_ids)
            for hook in hooks:
                hook.remove()
            part = slice(HEAD * width, (HEAD + 1) * width)
            write = o_proj.weight[:, part] @ kept["z"].reshape(-1)[part]
            logits = [inner.lm_head(inner.model.norm(end[None]))[0] for end in (kept["end"], kept["end"] - write)]
        changes.append((logits[0] - logits[1]) - (logits[0] - logits[1]).mean())
    mean = torch.stack(changes).mean(0)
    rows = words.table[words.table["model"] == "tuned"]
    assert rows["score"].to_numpy() == pytest.approx(mean[rows["token_id"].tolist()].numpy(), abs=1e-4)


def test_file_figure_and_a_head_that_is_not_there(tmp_path: Path) -> None:
    words = head_words(pair(say=7), PROMPTS, LAYER, HEAD, top=3)
    back = HeadWords.load(words.save(tmp_path / "words"))
    assert len(back.table) == 12 and "L1H2" in back.summary() and len(back.figure().data) == 4
    with pytest.raises(UserError, match="L9H0"):
        head_words(pair(), PROMPTS, 9, 0)


@pytest.mark.parametrize(
    ("family", "layer", "said"),
    [
        ("lfm2", 0, r"Layer 0 of this .* has no attention heads: those that have some are 1, 3\."),
        ("mamba2", 1, r"Layer 1 of this .* has no attention heads: none of its layers"),
        ("mamba2", 9, r"has no attention heads: none of its layers"),
    ],
)
def test_layers_without_heads_are_said_to_be_that(family: str, layer: int, said: str) -> None:
    model = mixed_model(family)
    two = load_pair(model, model)
    with pytest.raises(UserError, match=said):
        head_words(two, [{"input_ids": [3, 4, 5]}], layer, 0)
    if family == "mamba2":
        with pytest.raises(UserError, match=r"Layer 0 of this .* has no attention heads"):
            head_selection(two, [{"input_ids": [3, 4, 5], "answer": " a"}] * 8)
