"""Rows that join and leave a batch: every text is that of a run of its own, whatever else is being written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interventions as iv
from tests.tiny import tiny_model, tokenizer
from tunescope.serve.decoding import Decoding
from tunescope.serve.job import Finish, Job, TextOut
from tunescope.serve.sharing import why_alone
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

TEXTS = (
    "the quick brown fox",
    "a",
    "jumps over the lazy dog and then it sleeps under the old tree until the morning comes",
    "the fox",
    "over the quick dog the brown fox jumps and jumps",
)


def model_of(family: str) -> AdaptedModel:
    return AdaptedModel(tiny_model(family), tokenizer())


def vector(seed: int, size: float = 4) -> torch.Tensor:
    return size * torch.randn(64, generator=torch.Generator().manual_seed(seed))


def recipes() -> list[iv.Recipe | None]:
    """Offsets at several scopes, a gate that remembers, two that stand in each other's way at one module, none."""
    gate = iv.Gate(0, vector(7), 0.0, reach="onward")
    return [
        iv.Recipe([iv.Offset(1, vector(1), positions="last+generated")]),
        None,
        iv.Recipe([iv.Offset(1, vector(2), when=gate), iv.SubspaceKnob(1, vector(3), 2.0)]),
        iv.Recipe([iv.Offset(0, vector(4), site="attn_out", positions="generated[1:6]"), iv.HeadScale({"L2H1": 0.0})]),
        iv.Recipe([iv.ConceptAblation(2, vector(5), positions="content")]) * 0.7,
    ]


class Heard:
    """A request, and what it was told."""

    def __init__(self, side: AdaptedModel, text: str, recipe: iv.Recipe | None, tokens: int, **options: Any) -> None:
        batch = side.encode(Prompts.of([text], chat=False))
        sampling = {"temperature": 0.0, "top_p": 1.0, "seed": None, **options}
        self.job = Job(side, recipe, batch, tokens, stops=[], alone=why_alone(side, recipe), **sampling)
        self.pieces: list[Any] = []
        self.out = TextOut(self.job, self.pieces.append)

    @property
    def text(self) -> str:
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    @property
    def ended(self) -> bool:
        return bool(self.pieces) and isinstance(self.pieces[-1], Finish)

    def by_itself(self, **options: Any) -> str:
        job = self.job
        with (job.recipe or iv.Recipe()).applied(job.side):
            return job.side.generate(job.batch, max_new_tokens=job.new_tokens, **options)[0]


def written(side: AdaptedModel, heard: list[Heard], *, apart: int = 3) -> Decoding:
    """Let every request join ``apart`` steps after the one before, and write until all have ended."""
    decoding, late = Decoding(side), list(heard)
    steps = 0
    while late or len(decoding):
        if late and steps % apart == 0:
            decoding.join(late[0].job, late.pop(0).out)
        decoding.step()
        steps += 1
    return decoding


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "neox", "qwen3", "mixtral", "gptoss", "dsv3"])
def test_rows_with_different_recipes_are_runs_of_their_own(family: str) -> None:
    side = model_of(family)
    heard = [
        Heard(side, text, recipe, tokens)
        for text, recipe, tokens in zip(TEXTS, recipes(), (20, 24, 9, 14, 30), strict=True)
    ]
    assert [answer.job.alone for answer in heard] == [None] * 5
    assert len({answer.by_itself() for answer in heard}) > 3
    written(side, heard)
    assert [one.text for one in heard] == [one.by_itself() for one in heard]
    assert all(answer.ended for answer in heard) and side.n_hooks == 0


def test_the_recipe_of_a_row_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The equality above can fail: rows that see their neighbour's recipe are not runs of their own."""
    import tunescope.serve.decoding as module

    whole = module.for_row
    monkeypatch.setattr(module, "for_row", lambda hook, row, context: whole(hook, 0 * row, context))
    side = model_of("llama")
    heard = [Heard(side, text, recipe, 12) for text, recipe in zip(TEXTS, recipes(), strict=True)]
    written(side, heard)
    assert [one.text for one in heard] != [one.by_itself() for one in heard]


def logits_of_generate(job: Job, tokens: int) -> tuple[torch.Tensor, ...]:
    """Hugging Face's own, of every step of a run by itself."""
    with (job.recipe or iv.Recipe()).applied(job.side) as _, torch.no_grad():
        made = job.side.inner.generate(
            job.batch.input_ids, max_new_tokens=tokens, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return tuple(made.logits)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("steered", [False, True])
def test_a_row_by_itself_is_bit_equal_to_generate(
    family: str, *, steered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = model_of(family)
    request = Heard(side, TEXTS[4], recipes()[2] if steered else None, 12)
    plain = logits_of_generate(request.job, 12)
    seen: list[torch.Tensor] = []
    whole = Decoding._logits
    monkeypatch.setattr(Decoding, "_logits", lambda *given: (seen.append(whole(*given)), seen[-1])[1])
    written(side, [request])
    assert len(seen) == len(plain) > 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, plain, strict=True))


def test_first_tokens_are_bit_equal_and_steps_close_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    side = model_of("llama")
    heard = [Heard(side, text, recipe, 8) for text, recipe in zip(TEXTS, recipes(), strict=True)]
    seen: list[torch.Tensor] = []
    whole = Decoding._logits
    monkeypatch.setattr(Decoding, "_logits", lambda *given: (seen.append(whole(*given)), seen[-1])[1])
    decoding = Decoding(side)
    for one in heard:
        decoding.join(one.job, one.out)
    decoding.step()
    for place, one in enumerate(heard):
        plain = logits_of_generate(one.job, 2)
        assert torch.equal(seen[place], plain[0])
        torch.testing.assert_close(seen[5][place : place + 1], plain[1], atol=1e-4, rtol=1e-4)
    assert [len(text) for text in (decoding.clear(), decoding.clear())] == [5, 0]


def test_draws_are_those_of_generate_with_the_same_seed() -> None:
    side = model_of("llama")
    heard = [
        Heard(side, text, recipe, 10, temperature=1.3, top_p=0.9, seed=seed)
        for seed, (text, recipe) in enumerate(zip(TEXTS, recipes(), strict=True))
    ]
    written(side, heard)
    for seed, one in enumerate(heard):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            assert one.text == one.by_itself(do_sample=True, temperature=1.3, top_p=0.9, top_k=0)


def test_a_row_whose_client_left_frees_its_place() -> None:
    side = model_of("mistral")
    stays, leaves = Heard(side, TEXTS[1], None, 24), Heard(side, TEXTS[2], recipes()[0], 24)
    decoding = Decoding(side)
    decoding.join(leaves.job, leaves.out)
    decoding.join(stays.job, stays.out)
    decoding.step()
    leaves.out.stopped.set()
    decoding.step()
    assert len(decoding) == 1 and decoding._cached.width == decoding._cached.lengths[0] < len(TEXTS[2])
    while len(decoding):
        decoding.step()
    assert stays.text == stays.by_itself() and not leaves.ended


def test_what_cannot_share_steps_says_why() -> None:
    side, moe = model_of("llama"), model_of("mixtral")
    assert why_alone(side, None) is None and why_alone(moe, None) is None
    assert "computed for the whole batch" in str(why_alone(moe, iv.Recipe([iv.ExpertSwitch(off=["L1E0"])])))
    assert "attn.hook_pattern" not in str(why_alone(side, iv.Recipe([iv.Offset(1, vector(1))])))
    rows = iv.Recipe([iv.Offset(1, vector(1), strength=[1.0, 2.0])])
    assert "strength per row" in str(why_alone(side, rows))
    mixing = tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert "longest row" in str(why_alone(AdaptedModel(mixing, tokenizer()), None))
    penalised = tiny_model("llama")
    penalised.generation_config.repetition_penalty = 1.2
    assert "repetition_penalty" in str(why_alone(AdaptedModel(penalised, tokenizer()), None))
