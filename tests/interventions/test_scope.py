"""What an intervention touches does not depend on chunks, beams, samples or padding; strengths follow their prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interventions as iv
from tests.interventions.zoo import ids, model_of, noise
from workbench.errors import UserError
from workbench.prompts.encode import Encoded


def left_padded() -> Encoded:
    short = torch.nn.functional.pad(ids()[1, :11], (9, 0))
    batch = torch.stack([ids()[0], short])
    return Encoded(batch, (batch != 0).long())


def logits(family: str, recipe: iv.Recipe, batch: Encoded, **options: Any) -> torch.Tensor:
    model = model_of(family)
    with recipe.applied(model), torch.no_grad():
        out = model.inner.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(out.logits)


RECIPES = {
    "prompt window": iv.Recipe([iv.Offset(1, noise(64), positions="prompt[3:7]")]),
    "last": iv.Recipe([iv.Offset(1, noise(64), positions="last", strength=[1.0, -1.0])]),
    "generated": iv.Recipe([iv.Offset(1, noise(64), positions="generated")]),
    "mixed": iv.per_row([
        iv.Recipe([iv.HeadOffset({"L1H2": noise(16)}, positions="all - first")]),
        iv.Recipe([iv.ConceptAblation(2, noise(2, 64), positions="last+generated")]),
    ]),
    "patch": iv.Recipe([iv.Patch(1, noise(2, 6, 64), align="last")]),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_chunked_prefill(name: str) -> None:
    whole = logits("llama", RECIPES[name], left_padded())
    for size in (1, 4, 7):
        chunked = logits("llama", RECIPES[name], left_padded(), prefill_chunk_size=size)
        torch.testing.assert_close(chunked, whole, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(whole, logits("llama", iv.Recipe(), left_padded()), atol=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_beams_follow_their_prompt(name: str) -> None:
    """Each of the beams of a prompt gets that prompt's strength and recipe: scores equal those of it alone."""
    model, batch = model_of("llama"), left_padded()
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 3, "min_new_tokens": 3}
    rows = per_prompt(name)
    with RECIPES[name].applied(model):
        together = model.generate_ids(batch, **options)[:, -3:]
    for row, length in enumerate((20, 11)):
        alone = Encoded(batch.input_ids[row : row + 1, -length:], torch.ones(1, length, dtype=torch.long))
        with rows[row].applied(model):
            wanted = model.generate_ids(alone, **options)[:, -3:]
        assert torch.equal(together[2 * row : 2 * row + 2], wanted)


def per_prompt(name: str) -> list[iv.Recipe]:
    """What each of the two prompts gets by itself."""
    if name == "last":
        return [iv.Recipe([iv.Offset(1, noise(64), positions="last", strength=s)]) for s in (1.0, -1.0)]
    if name == "mixed":
        return [
            iv.Recipe([iv.HeadOffset({"L1H2": noise(16)}, positions="all - first")]),
            iv.Recipe([iv.ConceptAblation(2, noise(2, 64), positions="last+generated")]),
        ]
    if name == "patch":
        return [iv.Recipe([iv.Patch(1, noise(2, 6, 64)[row : row + 1], align="last")]) for row in (0, 1)]
    return [RECIPES[name]] * 2


def test_generated_scope_leaves_the_prompt_alone() -> None:
    model = model_of("llama")
    without = model.forward(ids())
    recipe = iv.Recipe([iv.Offset(layer, noise(64), positions="generated") for layer in range(3)])
    with recipe.applied(model, trace=True) as trace:
        assert torch.equal(model.forward(ids()), without)
        assert len(trace) == 0
    plain, steered = (logits("llama", one, left_padded()) for one in (iv.Recipe(), recipe))
    assert torch.equal(plain[0], steered[0]), "the first new token is written by the prompt"
    assert not torch.allclose(plain[1], steered[1], atol=1e-2)


def test_strengths_must_match_the_batch() -> None:
    model = model_of("llama")
    for wrong in (
        iv.Offset(1, noise(64), strength=[1.0, 2.0, 3.0]),
        iv.SubspaceKnob(1, noise(64), [1.0, 2.0, 3.0]),
        iv.Offset(1, noise(64), positions=iv.Where(rows=(True, False, True))),
    ):
        with pytest.raises(UserError, match=r"3 .*2 prompts"), iv.Recipe([wrong]).applied(model):
            model.forward(ids())
        assert model.n_hooks == 0


def test_tokens_and_exclusions() -> None:
    model, token = model_of("llama"), int(ids()[0, 7])
    scope = iv.Where("all", tokens=(token,), exclude="first")
    with iv.Recipe([iv.Offset(1, noise(64), positions=scope)]).applied(model, trace=True) as trace:
        model.forward(ids())
    frame = trace.frame()
    wanted = {(row, pos) for row, pos in (ids() == token).nonzero().tolist() if pos > 0}
    assert set(zip(frame["row"], frame["position"], strict=True)) == wanted
