"""Forms of a change, planted: row gains, column gains, groups, masks, rank one; noise has none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import probes
from probes.results import ProbeResult
from probes.weights.forms import explained
from tests.probes.provenance import Calls, pair
from tests.tiny import tiny_model
from workbench.errors import UserError

Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
PLANTED: dict[str, Change] = {
    "rows": lambda weight, g: weight * torch.rand(len(weight), 1, generator=g),
    "columns": lambda weight, g: weight * torch.rand(1, weight.shape[1], generator=g),
    "groups": lambda weight, g: weight * torch.rand(len(weight), 2, generator=g).repeat_interleave(32, 1),
    "mask": lambda weight, g: -weight * (torch.rand(weight.shape, generator=g) < 0.03),
    "rank_one": lambda weight, g: torch.randn(len(weight), 1, generator=g) @ torch.randn(
        1, weight.shape[1], generator=g
    ),
}  # fmt: skip


def calls_of_change_forms() -> Calls:
    both = pair()
    return Calls([{"base": both.base, "tuned": both.tuned, "group": 16, "draws": 2, "seed": 3}])


@pytest.mark.parametrize("form", PLANTED)
def test_a_planted_form_explains_all_of_the_change(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    shares = explained(weight, PLANTED[form](weight, generator), 32)
    assert shares[form] == pytest.approx(1.0, abs=1e-4)
    others = [value for name, value in shares.items() if name not in (form, "groups" if form == "rows" else form)]
    assert max(others) < 0.9


def test_noise_has_no_form_and_random_signs_take_one_away(tmp_path: Path) -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layers = tuned.model.layers
        layers[0].mlp.up_proj.weight *= 1 + torch.rand(96, 1, generator=generator)
        layers[1].mlp.up_proj.weight[torch.rand(96, 64, generator=generator) < 0.05] = 0
        layers[2].mlp.up_proj.weight += torch.randn(96, 64, generator=generator)
    result = probes.change_forms(base, tuned, draws=39)
    table = result.table.set_index("layer")
    assert table["form"].tolist()[:2] == ["rows", "mask"] and (table.loc[[0, 1], "score"] > 0.999).all()
    assert table.loc[0, "control"] < 0.2 and table.loc[0, "q"] < 0.05 < table.loc[2, "q"]
    assert table.loc[0, "gain"] == pytest.approx(1.5, abs=0.1) and table.loc[1, "off"] == pytest.approx(0.05, abs=0.01)
    assert table.loc[1, "density"] == table.loc[1, "off"] and table.loc[2, "score"] < 0.2
    again = ProbeResult.load(result.save(tmp_path / "f"))
    assert again.frame().equals(result.frame()) and result.figure().data and "switched off" in result.summary()


def test_base_against_itself_has_no_change_to_describe() -> None:
    with pytest.raises(UserError, match="do not differ"):
        probes.change_forms(tiny_model("llama"), tiny_model("llama"))
