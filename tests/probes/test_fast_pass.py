"""The fast first pass: when it is the default, what it confirms, and what it says of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from probes.patches.cells import Cell
from probes.patches.fast_pass import agreement, confirmed_cells, exact_cost, too_long
from probes.patches.patching import patching
from tests.probes.test_patching import pair_of
from tests.probes.test_patching_result import rows
from workbench.errors import UserError


def heads(n_layers: int, n_heads: int, positions: tuple[int, ...] | None = None) -> list[Cell]:
    return [Cell("write", layer, head, positions) for layer in range(n_layers) for head in range(n_heads)]


def test_the_exact_cost_is_the_layers_that_run_again() -> None:
    assert exact_cost(heads(30, 9), 30, 40) == pytest.approx(9 * 31 / 2)
    assert exact_cost(heads(30, 9, (-1,)), 30, 40) == pytest.approx(9 * 31 / 2 / 40), "one token on cached keys"
    assert exact_cost(heads(30, 9, (-1,)), 30, 1) == pytest.approx(9 * 31 / 2)


def test_small_maps_and_maps_that_cost_little_are_exact_by_default() -> None:
    assert too_long(heads(30, 9), 30, 40) and not too_long(heads(4, 8), 4, 40)
    assert not too_long(heads(30, 9, (-1,)), 30, 40) and not too_long(heads(18, 4), 18, 40)


def test_leading_cells_are_the_largest_and_the_others_are_drawn_by_seed() -> None:
    estimate = np.linspace(-2, 1, 100)
    top, sample = confirmed_cells(estimate, 0.1, 0.05, seed=0)
    assert np.flatnonzero(top).tolist() == list(range(10)) and sample.sum() == 5 and not (top & sample).any()
    assert (confirmed_cells(estimate, 0.1, 0.05, seed=0)[1] == sample).all()
    assert (confirmed_cells(estimate, 0.1, 0.05, seed=1)[1] != sample).any()
    none = confirmed_cells(estimate, 0.0, 0.05, seed=0)
    assert not none[0].any() and not none[1].any()
    every = confirmed_cells(estimate, 1.0, 0.05, seed=0)
    assert every[0].all() and not every[1].any()


def test_a_big_map_is_estimated_and_its_confirmed_rows_are_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    import probes.patches.fast_pass as fast

    pair, given = pair_of("llama", size=0.03), rows(12)
    exact = patching(pair, given, metric="kl")
    assert "confirmed" not in exact.table and exact.agreement is None and exact.together is not None
    monkeypatch.setattr(fast, "MANY_CELLS", 4)
    monkeypatch.setattr(fast, "TIMES", 1)
    found = patching(pair, given, metric="kl", confirm=0.25, confirm_others=0.2)
    table = found.table
    assert table.confirmed.value_counts().to_dict() == {"no": 7, "leading": 3, "random": 2} and found.together is None
    assert (table.exact == (table.confirmed != "no")).all() and found.provenance.settings[
        "estimated_by"
    ] == "attribution"
    confirmed = table[table.exact]
    assert confirmed.score.to_numpy() == pytest.approx(exact.table.score[confirmed.index].to_numpy(), abs=1e-4)
    rest = table[~table.exact]
    assert rest.score.to_numpy() == pytest.approx(rest.attribution.to_numpy(), abs=1e-9)
    assert "exact in 3 leading and 2 random cells" in found.summary()
    said = found.agreement.set_index("confirmed")
    drawn = table[table.confirmed == "random"]
    assert said.n.to_dict() == {"leading": 3, "random": 2}
    assert said.largest_error["random"] == pytest.approx((drawn.score - drawn.attribution).abs().max())
    whole = patching(pair, given, metric="kl", exact=True)
    assert whole.table.exact.all() and whole.table.score.to_numpy() == pytest.approx(exact.table.score.to_numpy())
    assert whole.provenance.settings["estimated_by"] is None


def test_agreement_of_nothing_is_empty() -> None:
    found = patching(pair_of("llama"), rows(6), method="attribution", confirm=0.0, normalise=False)
    assert found.agreement.empty and "every score is an estimate" in found.summary()
    assert agreement(found.table).empty


def test_contradicting_options_are_refused() -> None:
    with pytest.raises(UserError, match="patches every cell and method='ig' estimates them"):
        patching(pair_of("llama"), rows(2), method="ig", exact=True)
    with pytest.raises(UserError, match=r"confirm_others=2.0 is a share"):
        patching(pair_of("llama"), rows(2), confirm_others=2.0)
