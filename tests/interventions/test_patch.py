"""Patches: runs of the same and of the other model, alignment, heads, z and write."""

from __future__ import annotations

import pytest
import torch

import interventions as iv
from tests.interventions.zoo import _heads, ids, model_of, noise, other_ids
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded


def applied(model: AdaptedModel, *interventions: iv.Intervention, batch: torch.Tensor | Encoded | None = None):  # noqa: ANN201
    with iv.Recipe(interventions).applied(model):
        return model.forward(ids() if batch is None else batch)


@pytest.fixture(scope="module")
def pair() -> tuple[AdaptedModel, AdaptedModel]:
    base = tiny_model("llama", seed=3)
    return AdaptedModel(base, tokenizer(), role="base"), AdaptedModel(tuned_copy(base), tokenizer(), role="tuned")


def test_patching_everything_gives_the_source_run() -> None:
    model = model_of("llama")
    patch = iv.Patch.from_run(model, other_ids(), 1)
    torch.testing.assert_close(applied(model, patch), model.forward(other_ids()))
    assert torch.equal(applied(model, iv.Patch.from_run(model, ids(), 1)), model.forward(ids()))


def test_last_residual_of_the_other_model(pair: tuple[AdaptedModel, AdaptedModel]) -> None:
    base, tuned = pair
    patch = iv.Patch.from_run(tuned, ids(), 2, positions="last")
    norm_and_head = base.hf.lm_head(base.hf.model.norm(patch.values[:, -1]))
    torch.testing.assert_close(applied(base, patch)[:, -1], norm_and_head)
    assert base.n_hooks == tuned.n_hooks == 0


def test_alignment_of_different_lengths() -> None:
    model = model_of("llama")
    source = Encoded(
        torch.stack([other_ids()[0, :8], torch.nn.functional.pad(other_ids()[1, :5], (3, 0))]),
        torch.tensor([[1] * 8, [0] * 3 + [1] * 5]),
    )
    alone = [model.forward(other_ids()[0:1, :8]), model.forward(other_ids()[1:2, :5])]
    last = iv.Patch.from_run(model, source, 2, align="last")
    equal = iv.Patch.from_run(model, source, 2, align="equal")
    plain = model.forward(ids())
    for row, length in enumerate((8, 5)):
        ends, starts = applied(model, last)[row], applied(model, equal)[row]
        torch.testing.assert_close(ends[-length:], alone[row][0], atol=1e-4, rtol=1e-4)
        assert torch.equal(ends[:-length], plain[row, :-length])
        torch.testing.assert_close(starts[:length], alone[row][0], atol=1e-4, rtol=1e-4)
        assert torch.equal(starts[length:], plain[row, length:])


def test_write_equals_z_within_a_model_and_differs_across(pair: tuple[AdaptedModel, AdaptedModel]) -> None:
    base, tuned = pair
    same = [iv.Patch.from_run(base, other_ids(), 1, "z", heads=[1, 3], what=what) for what in ("z", "write")]
    torch.testing.assert_close(applied(base, same[0]), applied(base, same[1]), atol=1e-5, rtol=1e-4)
    across = [iv.Patch.from_run(tuned, ids(), 1, "z", heads=["L1H1", 3], what=what) for what in ("z", "write")]
    assert not torch.allclose(applied(base, across[0]), applied(base, across[1]), atol=1e-3)


def test_write_is_the_other_models_projection(pair: tuple[AdaptedModel, AdaptedModel]) -> None:
    base, tuned = pair
    z = {}
    for model in pair:
        projection = model.hf.model.layers[1].self_attn.o_proj
        handle = projection.register_forward_pre_hook(lambda m, args, key=model.role: z.update({key: args[0]}))
        model.forward(ids())
        handle.remove()

    def of_head(model: AdaptedModel, head: int) -> torch.Tensor:
        weight = model.hf.model.layers[1].self_attn.o_proj.weight[:, head * 16 : (head + 1) * 16]
        return _heads(z[model.role], model)[:, :, head] @ weight.T

    handle = base.hf.model.layers[1].self_attn.o_proj.register_forward_hook(
        lambda m, args, out: out + of_head(tuned, 2) - of_head(base, 2)
    )
    wanted = base.forward(ids())
    handle.remove()
    patch = iv.Patch.from_run(tuned, ids(), 1, "z", heads=[2], what="write")
    torch.testing.assert_close(applied(base, patch), wanted, atol=1e-5, rtol=1e-4)


def test_part_of_the_way() -> None:
    model = model_of("llama")
    patch = iv.Patch.from_run(model, other_ids(), 1, positions="last")
    half = applied(model, patch.scaled(0.5))
    middle = (iv.record_run(model, ids(), "resid_post", 1).values + patch.values) / 2
    torch.testing.assert_close(half, applied(model, iv.Patch(1, middle, positions="last")))


def test_refused() -> None:
    llama, gemma = model_of("llama"), model_of("gemma2")
    with pytest.raises(NotSupported, match="normalises the attention output"):
        iv.Patch.from_run(gemma, ids(), 1, "z", heads=[1], what="write")
    with pytest.raises(UserError, match="out of range"):
        iv.Recipe([iv.Patch(1, noise(1, 16), "z", heads=[9])]).check(llama)
    with pytest.raises(UserError, match="width 32"):
        iv.Recipe([iv.Patch(1, noise(32))]).check(llama)
    with pytest.raises(UserError, match="has no heads"):
        iv.Patch(1, noise(64), heads=[1])
    with pytest.raises(UserError, match="site that can be patched"):
        iv.Patch(1, noise(64), "pattern")
