"""Layers as views, attributes of unseen things, directions through a map, sets of labels, curved paths, concepts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probes
from probes.representation.attribute_suite import macro_f1
from probes.representation.concept_drift import distances
from probes.representation.direction_transfer import area
from probes.representation.layer_views import mixture_weights
from probes.representation.set_algebra import combined
from probes.results import ProbeResult
from tests.probes.effects.material import pair_of, rows_of
from tests.probes.provenance import Calls
from tests.probes.representation.planted import planted
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

ROWS = rows_of(
    48, topic=lambda i: "abc"[i % 3], thing=lambda i: f"t{i % 12}", language=lambda i: "xy"[i // 12 % 2],
    has=lambda i: ("red, big", "red", "big, old", "old")[i % 4],
)  # fmt: skip


def recorded(size: float = 0.1, **options: Any) -> Recording:
    return record(pair_of(size), ROWS, "resid_post", layers=[0, 1], **options)


def column(name: str) -> list[Any]:
    return [row.columns[name] for row in ROWS]


def calls_of_layer_views() -> Calls:
    given = {"labels": column("topic"), "folds": 3, "ridge": 2.0, "draws": 20, "seed": 3}
    return Calls([{"recording": recorded(), **given}])


def calls_of_attribute_suite() -> Calls:
    given = {"attributes": column("has"), "things": column("thing"), "spans": [(0, 2)] * 48, "folds": 3}
    return Calls([{"recording": recorded(positions="all"), **given, "ridge": 2.0, "draws": 2, "seed": 3}])


def calls_of_direction_transfer() -> Calls:
    given = {"labels": column("topic"), "ridge": 0.5, "draws": 10, "seed": 3}
    return Calls([{"recording": recorded(), **given}])


def calls_of_set_algebra() -> Calls:
    return Calls([{"recording": recorded(), "sets": column("has"), "pairs": 40, "ridge": 0.5, "seed": 3}])


def calls_of_curved_path() -> Calls:
    given = {"labels": column("language"), "keep": column("topic"), "steps": 4, "reach": 1.0, "target": 0.8, "seed": 3}
    return Calls([{"recording": recorded(), **given}])


def contrasted(n: int = 12) -> Prompts:
    return Prompts.of([
        {"prompt": f"zup {word} {i}", "contrast": f"the dog {word} {i}", "answer": " fox"}
        for i, word in zip(range(n), ("runs", "sleeps", "eats") * n, strict=False)
    ])  # fmt: skip


def calls_of_concept_drift() -> Calls:
    given = {"layers": [0, 2], "batch_size": 4, "seed": 3}
    return Calls([{"pair": pair_of(), "prompts": contrasted(), **given}])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(result: ProbeResult, folder: Path) -> None:
    again = ProbeResult.load(result.save(folder))
    assert again.frame().equals(result.frame()) and result.figure().data and result.summary()


def test_the_view_that_holds_the_label_gets_the_weight(tmp_path: Path) -> None:
    y = np.arange(60) % 2
    told = normal(60, 6) + 4.0 * torch.from_numpy(y)[:, None]
    result = probes.layer_views(planted(normal(60, 6, seed=1), told, list("ab" * 30)), draws=50)
    table = result.table.set_index("model")
    assert table.loc["tuned", "score"] > 0.9 > 0.1 > table.loc["base", "score"] and table.loc["tuned", "q"] < 0.05
    held = result.held_out.set_index("ensemble")["score"]
    assert held["learned weights"] > 0.9 > held["last layer of base"] and held["largest class"] == pytest.approx(
        0.5, abs=0.1
    )
    saved(result, tmp_path / "v")
    noise = [
        probes.layer_views(planted(normal(60, 6, seed=10 + n), normal(60, 6, seed=20 + n), list("ab" * 30)), draws=50)
        for n in range(6)
    ]
    assert sum(bool((one.table["q"] < 0.05).any()) for one in noise) <= 1


def test_mixture_weights_by_hand() -> None:
    likelihood = np.array([[0.9, 0.9, 0.9, 0.1], [0.1, 0.1, 0.1, 0.9]])
    times = np.stack([np.ones(4), [1, 1, 1, 0], [0, 0, 0, 1]]).astype(float)
    found = mixture_weights(likelihood, times)
    # d/dw of 3 log(.1 + .8 w) + log(.9 - .8 w): w = 0.8125
    assert found[0, 0] == pytest.approx(0.8125, abs=1e-3) and found[1, 0] > 0.999 and found[2, 1] > 0.999
    assert np.allclose(found.sum(1), 1)


def test_attributes_of_unseen_things_are_told_from_memorised_ones(tmp_path: Path) -> None:
    """Red is a direction of all red things; old is known of each thing by itself alone."""
    things = np.arange(96) % 24
    red, old = things % 2 == 0, np.isin(things, np.random.default_rng(0).permutation(24)[:12])
    own = normal(24, 40, seed=3)[torch.from_numpy(things)] * 2
    states = (
        own
        + 10.0 * torch.from_numpy(red)[:, None] * torch.nn.functional.one_hot(torch.tensor(0), 40)
        + 0.1 * normal(96, 40)
    )
    texts = [", ".join(name for name, one in (("red", a), ("old", b)) if one) for a, b in zip(red, old, strict=True)]
    recording = planted(own + 0.1 * normal(96, 40), states, texts)
    result = probes.attribute_suite(recording, things=[str(thing) for thing in things], folds=4)
    row, each = result.table.iloc[0], result.attributes.set_index("attribute")
    assert each.loc["red", "tuned"] > 0.95 > each.loc["red", "base"] and each.loc["old", "tuned"] < 0.8
    assert row["seen"] > 0.9 > row["score"] and row["gap"] > 0.1 and row["change_low"] > 0 and row["q"] < 0.05
    saved(result, tmp_path / "a")
    with pytest.raises(UserError, match="No attribute is had"):
        probes.attribute_suite(planted(states, states, ["red"] * 96))


def test_f1_by_hand() -> None:
    said, wanted = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    assert macro_f1(said, wanted, np.ones((1, 4)))[0, 0] == 0.5
    assert macro_f1(said & False, wanted & False, np.ones((1, 4)))[0, 0] == 0


def test_a_direction_passes_a_rotation_and_not_a_mixed_up_map(tmp_path: Path) -> None:
    """The tuned states are the base's turned and widened: the base's own direction means nothing there."""
    y = np.arange(120) % 2
    base = normal(120, 8) + 3.0 * torch.from_numpy(y)[:, None] * torch.nn.functional.one_hot(torch.tensor(2), 8)
    turn = torch.linalg.qr(normal(12, 12, seed=5)).Q[:8]
    result = probes.direction_transfer(planted(base, base @ turn, list("ab" * 60)), ridge=0.01)
    row = result.table.iloc[0]
    assert row["score"] > 0.9 and row["q"] < 0.05 and row["fit"] > 0.95 and row["cosine"] > 0.95
    assert row["score"] == pytest.approx(row["source"], abs=0.02) and math.isnan(row["raw"]) and row["control"] < 0.8
    saved(result, tmp_path / "t")
    apart = probes.direction_transfer(planted(base, normal(120, 12, seed=9), list("ab" * 60)))
    assert apart.table.iloc[0]["q"] > 0.05 and apart.table.iloc[0]["low"] < 0.5 < apart.table.iloc[0]["high"]
    same = probes.direction_transfer(planted(base, base, list("ab" * 60)), ridge=1e-6).table.iloc[0]
    assert same["score"] == pytest.approx(same["own"], abs=1e-3) and same["raw"] == same["own"]


def test_the_area_is_scipys() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    values, positive = random.normal(size=30).round(1), random.random(30) > 0.5
    assert area(values, positive, np.ones((1, 30)))[0] == pytest.approx(roc_auc_score(positive, values))


def test_states_that_are_sums_of_concepts_obey_the_algebra(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sets = random.random((160, 4)) < 0.5
    vectors = torch.linalg.qr(normal(24, 24)).Q[:4] * 5
    states = torch.from_numpy(sets).float() @ vectors + 0.2 * normal(160, 24, seed=1) + 1.0
    texts = [", ".join(name for name, one in zip("abcd", row, strict=True) if one) for row in sets]
    recording = planted(normal(160, 24, seed=2), states, texts)
    result = probes.set_algebra(recording, pairs=150)
    table = result.table.set_index("operation")
    assert table["score"].min() > 0.95 and (table["q"] < 0.05).all() and (table["change_low"] > 0).all()
    assert table.loc["intersection", "score"] > table.loc["intersection", "plain"] and table["control"].max() < 0.8
    saved(result, tmp_path / "s")
    with pytest.raises(UserError, match="Fewer than two labels"):
        probes.set_algebra(planted(states, states, ["a"] * 160))
    first, second = np.array([[1.0, 1, 0, 0]]), np.array([[1.0, 0, 1, 0]])
    assert combined("union", first, second).tolist() == [[1, 1, 1, 0]]
    assert combined("intersection", first, second).tolist() == [[1, 0, 0, 0]]
    assert combined("difference", first, second).tolist() == [[0, 1, 0, 0]]


def test_around_a_ring_the_curved_path_keeps_what_a_straight_one_crosses(tmp_path: Path) -> None:
    """The attribute is which side of the ring, the identity which ring: a straight way crosses the inner ring."""
    random = np.random.default_rng(0)
    side, ring = np.arange(360) % 2, np.arange(360) // 2 % 2
    angle = np.where(side == 1, 0.0, np.pi) + random.normal(size=360) * 0.9
    radius = np.where(ring == 1, 6.0, 2.0) + random.normal(size=360) * 0.2
    flat = torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)).float()
    states = flat @ torch.linalg.qr(normal(6, 6)).Q[:2]
    recording = planted(states, states, [str(one) for one in side])
    result = probes.curved_path(recording, keep=[str(one) for one in ring], reach=4.0, steps=40)
    row = result.table.iloc[0]
    assert row["kept_curved"] > row["kept_straight"] and row["score"] > 0.1 and row["q"] < 0.05
    assert row["gain_curved"] > row["gain_random"] + 0.2 and row["gain_straight"] > 0.5 and row["bend"] > 0.3
    assert set(result.field["path"]) == {"curved", "straight", "random"} and len(result.field) == 3 * 41
    saved(result, tmp_path / "c")
    with pytest.raises(UserError, match="keep="):
        probes.curved_path(recording)


def test_a_concept_that_left_its_class_is_seen_and_a_base_stays(tmp_path: Path) -> None:
    one, other = normal(10, 2, 16), normal(10, 2, 16, seed=1)
    near, _ = distances(one + 5 * other, 5 * other + one)
    far, chance = distances(one, other)
    assert near.max() < 1e-6 and far.mean() == pytest.approx(chance.mean(), abs=0.3)
    result = probes.concept_drift(pair_of(), contrasted())
    assert (
        len(result.table) == 3 and result.table["score"].abs().max() > 0 and not math.isnan(result.composition["score"])
    )
    saved(result, tmp_path / "d")
    nothing = probes.concept_drift(pair_of(0.0), contrasted())
    assert (nothing.table["score"] == 0).all() and (nothing.table["q"] == 1).all() and nothing.composition["p"] == 1
    with pytest.raises(UserError, match="has no contrast"):
        probes.concept_drift(pair_of(), ["the fox", "the dog"])


def test_a_word_moved_away_from_its_class_drifts() -> None:
    """In the tuned model the embedding of one word alone is another one; prompts without it are as before."""
    both = pair_of(0.0)
    import copy

    from tests.tiny import tokenizer
    from workbench.models.pair import load_pair

    tuned = copy.deepcopy(both.base.hf)
    ids = tokenizer()("zup", add_special_tokens=False)["input_ids"]
    base = both.base.hf
    with torch.no_grad():  # before tuning the concept's tokens are nearly the class's
        dog = base.model.embed_tokens.weight[tokenizer()(" dog", add_special_tokens=False)["input_ids"][0]]
        for model, away in ((base, 0.0), (tuned, 3.0)):
            for number in ids:
                model.model.embed_tokens.weight[number] = dog + away * normal(64, seed=number)
    result = probes.concept_drift(
        load_pair(base, tuned, device="cpu", tokenizer=tokenizer(), check=False), contrasted(), layers=[0]
    )
    row = result.table.iloc[0]
    assert row["score"] > row["control"] and row["low"] > 0 and row["q"] < 0.05
