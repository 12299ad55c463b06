"""Token shift: equal models shift nothing; a bump on one token shifts exactly where it should."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from probes.token_ranks import BASE_WRITES, TUNED_WRITES, TokenShift, kinds, ranks, token_shift
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

PROMPTS = ["the quick brown", "a dog", "jumps over the lazy dog and"]
BUMPED = 40


def model_of(family: str = "gpt2", bump: float = 0.0, swap: bool = False) -> AdaptedModel:
    """``bump``: added to one token's logit, always. ``swap``: exchange the logits of ranks 2 and 3."""
    hf = tiny_model(family)
    hf.generation_config.eos_token_id = None

    def change(module: torch.nn.Module, args: object, logits: torch.Tensor) -> torch.Tensor:
        out = logits.clone()
        out[..., BUMPED] += bump
        if swap:
            first = out.topk(2, dim=-1).indices
            out.scatter_(-1, first, out.gather(-1, first.flip(-1)))
        return out

    hf.lm_head.register_forward_hook(change)
    return AdaptedModel(hf, tokenizer(), role="model")


def pair(tuned: AdaptedModel, base: AdaptedModel | None = None) -> SimpleNamespace:
    return SimpleNamespace(base=base or model_of(), tuned=tuned)


def test_equal_models_shift_nothing() -> None:
    found = token_shift(pair(model_of()), PROMPTS, max_new_tokens=8)
    assert (found.tokens["rank"] == 1).all() and found.tokens["kl"].max() < 1e-6
    assert (found.table["score"] == 0).all() and (found.table["q"] == 1).all()
    assert found.shares.query("kind == 'unshifted'")["share"].tolist() == [1.0, 1.0]


def test_a_bump_shifts_exactly_where_it_wins() -> None:
    tuned, base = model_of(bump=50.0), model_of()
    found = token_shift(pair(tuned, base), PROMPTS, max_new_tokens=6)
    written = found.tokens[found.tokens["direction"] == TUNED_WRITES]
    assert (written["token_id"] == BUMPED).all()
    for prompt, rows in written.groupby("prompt"):
        ids = base.encode([PROMPTS[prompt]]).input_ids
        for position, rank in zip(rows["position"], rows["rank"], strict=True):
            seen = torch.cat([ids, torch.full((1, position), BUMPED)], dim=1)
            logits = base.forward(seen)[0, -1]
            assert rank == (logits > logits[BUMPED]).sum().item() + 1
    assert (written["kind"] == "shifted").any() and written["kl"].min() > 0
    reverse = found.tokens[found.tokens["direction"] == BASE_WRITES]
    assert (reverse.loc[reverse["token_id"] != BUMPED, "rank"] > 1).all(), "the tuned model prefers its bump"


def test_exchanging_the_first_two_gives_only_marginal_tokens() -> None:
    found = token_shift(pair(model_of(swap=True)), PROMPTS, max_new_tokens=6)
    assert (found.tokens["kind"] == "marginal").all() and (found.tokens["rank"] == 2).all()


def test_ties_are_broken_by_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    assert [ranks(logits, torch.tensor([token])).item() for token in range(4)] == [4, 1, 2, 3]
    assert kinds(torch.tensor([1, 2, 3, 4])) == ["unshifted", "marginal", "marginal", "shifted"]


def test_the_base_may_read_another_prompt_and_only_the_response_counts() -> None:
    plain = ["x " + prompt for prompt in PROMPTS]
    found = token_shift(pair(model_of()), PROMPTS, base_prompts=plain, max_new_tokens=4)
    assert found.tokens.groupby(["direction", "prompt"]).size().eq(4).all()
    with pytest.raises(UserError, match="3 prompts and 1"):
        token_shift(pair(model_of()), PROMPTS, base_prompts=["x"])


def test_special_tokens_stand_apart() -> None:
    tuned = model_of()
    tuned.hf.generation_config.eos_token_id = BUMPED
    base = model_of(bump=50.0)
    base.hf.generation_config.eos_token_id = BUMPED
    found = token_shift(pair(tuned, base), PROMPTS, max_new_tokens=4)
    reverse = found.tokens[found.tokens["direction"] == BASE_WRITES]
    assert len(reverse) == len(PROMPTS) and reverse["special"].all(), "the base ends at once"
    assert set(found.shares["direction"]) == {TUNED_WRITES}


def test_file_figure_and_escaping(tmp_path: Path) -> None:
    found = token_shift(pair(model_of(bump=50.0)), PROMPTS, max_new_tokens=4)
    back = TokenShift.load(found.save(tmp_path / "shift"))
    assert back.tokens["token"].tolist() == found.tokens["token"].tolist()
    assert "along the response" in back.figure().to_json() and "noise floor" in back._repr_html_()
