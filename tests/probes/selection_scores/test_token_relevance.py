"""Tokens by attention: what is left of a prompt, and heads that look at one planted token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interventions as iv
import probes
from probes.results import ProbeResult
from probes.selection_scores.token_relevance import _chosen
from tests.probes.provenance import Calls, pair, rows
from workbench.errors import UserError
from workbench.prompts.collection import Prompts


def calls_of_token_relevance() -> Calls:
    return Calls([{"subject": pair(), "prompts": rows(), "share": 0.4, "draws": 2, "batch_size": 3, "seed": 3}])


def test_first_last_and_the_heaviest_between_stay_in_order() -> None:
    assert _chosen(np.array([0.0, 0.1, 0.9, 0.2, 0.8, 0.0]), 0.5).tolist() == [0, 2, 4, 5]
    assert _chosen(np.array([0.0, 0.1, 0.9, 0.0]), 0.01).tolist() == [0, 2, 3]
    assert _chosen(np.zeros(5), 1.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")
def test_tokens_that_attention_is_drawn_to_are_needed(tmp_path: Path) -> None:
    """Every head is made to look at the fourth token alone, so the answer hangs on it and not on the others."""
    both = pair()
    texts = [f"the {a} {b} over jumps lazy" for a in "abcd" for b in ("fox", "dog", "red", "big")]
    heads = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    scale = iv.AttentionScale(1e6, heads, keys=[3])
    with iv.Recipe([scale]).applied(both.tuned):
        ids = [both.tuned.encode([text]).input_ids for text in texts]
        says = [both.tuned.tokenizer.decode([int(both.tuned.forward(prompt)[0, -1].argmax())]) for prompt in ids]
        kept = [(text, word) for text, word in zip(texts, says, strict=True) if word.strip()]
        asked = Prompts.of([{"prompt": one, "answer": word} for one, word in kept])
        result = probes.token_relevance(both.tuned, asked, share=0.3)
    top = result.tokens.sort_values("relevance", ascending=False).groupby("prompt").first()
    assert (top["position"] == 3).all() and set(result.table["module"]) == {"most relevant", "least relevant"}
    again = ProbeResult.load(result.save(tmp_path / "t"))
    assert again.frame().equals(result.frame()) and result.figure().data and "tokens left" in result.summary()


def test_all_tokens_left_is_no_change_and_short_prompts_are_refused() -> None:
    result = probes.token_relevance(pair(), rows(), share=1.0, draws=1)
    assert (result.table["score"].abs() < 1e-9).all() and (result.table["q"] == 1).all()
    with pytest.raises(UserError, match="four tokens or more"):
        probes.token_relevance(pair(), [{"prompt": "a", "answer": " fox"}])
