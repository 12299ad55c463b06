"""Offsets equal to adding the vector by hand, in every unit of strength."""

from __future__ import annotations

import warnings

import pytest
import torch

import interventions as iv
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    return AdaptedModel(tiny_model("llama"), tokenizer())


@pytest.fixture
def vector() -> torch.Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(3))


def residual(model: AdaptedModel, ids: torch.Tensor) -> torch.Tensor:
    """Residual stream after layer 1, read with a plain torch hook."""
    kept = []
    handle = model.hf.model.layers[2].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    model.forward(ids, logits=None)
    handle.remove()
    return kept[0]


def test_units(model: AdaptedModel, vector: torch.Tensor) -> None:
    ids = token_batch()
    plain = residual(model, ids)
    own = plain.norm(dim=-1, keepdim=True)
    unit = vector / vector.norm()
    expected = {
        "raw": plain + 0.7 * vector,
        "fraction": plain + 0.7 * own * unit,
        "norm": plain + 0.7 * 5.0 * unit,
    }
    for units, wanted in expected.items():
        offset = iv.Offset(1, vector, strength=0.7, units=units, site_norm=5.0)
        with iv.Recipe([offset]).applied(model):
            torch.testing.assert_close(residual(model, ids), wanted)


def test_norm_matching_keeps_every_norm(model: AdaptedModel, vector: torch.Tensor) -> None:
    ids = token_batch()
    plain = residual(model, ids)
    with iv.Recipe([iv.Offset(1, vector, strength=3.0, match_norm=True)]).applied(model):
        changed = residual(model, ids)
    torch.testing.assert_close(changed.norm(dim=-1), plain.norm(dim=-1))
    wanted = torch.nn.functional.normalize(plain + 3.0 * vector, dim=-1)
    torch.testing.assert_close(torch.nn.functional.normalize(changed, dim=-1), wanted)


def test_bad_offsets(model: AdaptedModel, vector: torch.Tensor) -> None:
    with pytest.raises(UserError, match="NaN"):
        iv.Offset(1, vector / 0)
    with pytest.raises(UserError, match="Unknown site"):
        iv.Offset(1, vector, site="resid_pots")
    with pytest.raises(UserError, match="site_norm"):
        iv.Offset(1, vector, units="norm")
    for wrong, reason in [(iv.Offset(1, vector[:32]), "width 32"), (iv.Offset(7, vector), "out of range")]:
        with pytest.raises(UserError, match=reason):
            iv.Recipe([wrong]).check(model)
        assert model.n_hooks == 0


def test_a_schedule_longer_than_the_text_is_told() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    schedule = iv.Recipe([iv.OffsetSchedule(1, torch.ones(64), [0.0, 1.0, 0.0], every=4)])
    with schedule.applied(model), pytest.warns(iv.ScheduleWarning, match="after 5 at most: 1 of 3 weights"):
        model.generate(["the fox"], max_new_tokens=5)
    with schedule.applied(model), warnings.catch_warnings():
        warnings.simplefilter("error", iv.ScheduleWarning)
        model.generate(["the fox"], max_new_tokens=8)
