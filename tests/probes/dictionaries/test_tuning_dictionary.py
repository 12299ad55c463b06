"""Dictionaries of tuning: a planted dictionary is found again, whose latents are is told, and nothing is found where
nothing was tuned."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from probes.concepts.dictionary import Dictionary
from probes.dictionaries.labelled import auroc
from probes.dictionaries.result import TuningDictionary
from probes.dictionaries.streaming import SiteRows
from probes.dictionaries.train import tuning_dictionary
from tests.probes.provenance import Calls, pair, rows
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

D, PROMPTS, LENGTH, SITE = 48, 240, 25, "blocks.1.hook_resid_post"
SHARED, TUNED_ONLY, BASE_ONLY = 30, 6, 4


class Planted(NamedTuple):
    recording: Recording
    atoms: torch.Tensor
    """[feature, d]: the shared ones, then the tuned model's own, then the base's own."""
    labels: list[str]


@cache
def planted(tuned: bool = True, seed: int = 0) -> Planted:
    """Rows are sparse sums of random directions; feature 30, the tuned model's own, fires where the label says so."""
    random = torch.Generator().manual_seed(seed)
    count, n = SHARED + TUNED_ONLY + BASE_ONLY, PROMPTS * LENGTH
    atoms = normalize(torch.randn(count, D, generator=random), dim=1)
    active = (torch.rand(n, count, generator=random) < 0.06) * (1 + torch.rand(n, count, generator=random))
    prompt = np.arange(n) // LENGTH
    yes = torch.from_numpy(prompt % 2 == 0)
    active[~yes, SHARED] = 0
    own = SHARED + TUNED_ONLY
    noise = 0.02 * torch.randn(n, D, generator=random)
    base = active[:, :SHARED] @ atoms[:SHARED] + noise
    after = base + 0.02 * torch.randn(n, D, generator=random) + active[:, SHARED:own] @ atoms[SHARED:own]
    base = base + active[:, own:] @ atoms[own:]
    index = pd.DataFrame({
        "prompt": prompt, "position": np.arange(n) % LENGTH,
        "token": ["odd" if value else "plain" for value in (active[:, SHARED] > 0).tolist()],
    })  # fmt: skip
    config = {"roles": ["base", "tuned"], "sites": [SITE], "n_prompts": PROMPTS}
    made = Recording(index, config, {"base": {SITE: base}, "tuned": {SITE: after if tuned else base}})
    return Planted(made, atoms, ["yes" if number % 2 == 0 else "no" for number in range(PROMPTS)])


OPTIONS: dict[str, Any] = {"width": 64, "k": 3, "epochs": 50, "batch_size": 256, "learning_rate": 4e-3, "top": 64}


@cache
def crosscoder() -> TuningDictionary:
    made = planted()
    return tuning_dictionary(made.recording, labels=made.labels, examples=2, **OPTIONS)


def best_cosines(wanted: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
    return (normalize(wanted, dim=1) @ normalize(decoder, dim=1).T).max(1).values


def test_the_planted_dictionary_is_found_again() -> None:
    found, atoms = crosscoder(), planted().atoms
    base, tuned = found.directions.base, found.directions.tuned
    assert base is not None and tuned is not None
    own = SHARED + TUNED_ONLY
    assert best_cosines(atoms[:own], tuned).mean() > 0.95
    assert best_cosines(atoms[own:], base).min() > 0.9
    random = normalize(torch.randn(64, D, generator=torch.Generator().manual_seed(1)), dim=1)
    assert best_cosines(atoms, random).mean() < 0.6, "the measure tells a random dictionary"
    assert found.explained > 0.9 and 2 < found.active < 5


def test_whose_latents_are_is_told() -> None:
    found, atoms = crosscoder(), planted().atoms
    table, tuned, base = found.table.set_index("latent"), found.directions.tuned, found.directions.base
    assert tuned is not None and base is not None
    for atom in atoms[SHARED : SHARED + TUNED_ONLY]:
        row = table.loc[int((normalize(tuned, dim=1) @ atom).argmax())]
        assert row["kind"] == "tuned" and row["low"] > 0.9 and row["q"] < 0.01
    for atom in atoms[SHARED + TUNED_ONLY :]:
        row = table.loc[int((normalize(base, dim=1) @ atom).argmax())]
        assert row["kind"] == "base" and row["high"] < 0.1
    shared = [int((normalize(tuned, dim=1) @ atom).argmax()) for atom in atoms[:SHARED]]
    assert (table.loc[shared, "kind"] == "shared").mean() > 0.9
    assert table["control"].between(0.4, 0.6).all()
    assert "6 tuned" in found.summary() and "tuned" in found.figure().to_json()


def test_a_latent_follows_the_labels_and_its_examples_show_where() -> None:
    found, atom = crosscoder(), planted().atoms[SHARED]
    first, means = found.labelled.iloc[0], found.labelled.iloc[-1]
    # the feature fires on 6 % of 24 tokens, so in 0.94 ** 24 = 23 % of its prompts on none: the best there is is 0.89
    assert first["auroc"] > 0.8 and first["low"] > 0.6 and means["feature"] == "difference of means, greatest token"
    assert abs(first["control"] - 0.5) < 0.15
    latent = int(first["latent"])
    assert float(normalize(found.direction(latent), dim=0) @ atom) > 0.95
    shown = found.examples[found.examples["latent"] == latent]
    assert len(shown) == 2 and shown["context"].str.contains("»odd«").all() and shown["prompt"].is_unique


def test_base_against_itself_has_nothing_of_its_own() -> None:
    made = planted(tuned=False)
    found = tuning_dictionary(made.recording, **{**OPTIONS, "epochs": 5})
    assert found.table["q"].min() > 0.5 and np.allclose(found.table["explained"], 0)
    assert not found.table["kind"].isin(["tuned", "base"]).any()
    with pytest.raises(UserError, match="Nothing to find"):
        tuning_dictionary(made.recording, "difference", **OPTIONS)


@pytest.mark.parametrize("kind", ["difference", "transcoder"])
def test_the_difference_is_made_of_the_features_that_changed(kind: Any) -> None:
    made = planted()
    found = tuning_dictionary(made.recording, kind, **{**OPTIONS, "width": 40, "k": 1})
    own = made.atoms[SHARED:]
    signed = torch.cat([own[:TUNED_ONLY], -own[TUNED_ONLY:]])
    if kind == "difference":
        assert best_cosines(signed, found.directions.change).mean() > 0.95
        assert found.explained > 0.9
    else:  # the base's row tells what the base alone has, and nothing of what only tuning brought
        assert best_cosines(signed[TUNED_ONLY:], found.directions.change).mean() > 0.9
    best = found.frame().iloc[0]
    assert best["q"] < 0.01 and best["low"] > best["control"]


def test_folders_are_written_and_read(tmp_path: Path) -> None:
    found = crosscoder()
    folder = found.save_dictionary(tmp_path / "cross")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu" and config["d_in"] == 2 * D and config["d_sae"] == 64
    x = torch.randn(7, 2 * D)
    assert torch.equal(Dictionary.load(folder).encode(x), found.dictionary.encode(x))
    again = tuning_dictionary(planted().recording, dictionary=folder, **OPTIONS)
    pd.testing.assert_frame_equal(again.table, found.table)
    with pytest.raises(UserError, match="reads width 96"):
        tuning_dictionary(planted().recording, "difference", dictionary=folder)
    coder = tuning_dictionary(planted().recording, "transcoder", width=16, k=2, epochs=1, batch_size=256)
    assert Dictionary.load(coder.save_dictionary(tmp_path / "trans")).transcodes
    kept = TuningDictionary.load(found.save(tmp_path / "result"))
    assert torch.equal(kept.weights["W_dec"], found.weights["W_dec"])


def test_latents_become_recipes() -> None:
    recording = record(pair(), rows(12), ["resid_post"], positions="all", layers=[1])
    found = tuning_dictionary(recording, width=12, k=2, epochs=2, batch_size=16)
    model, latent = pair().tuned, int(found.frame()["latent"][0])
    ids = torch.randint(4, 200, (2, 5), generator=torch.Generator().manual_seed(0))
    plain = model.hf(input_ids=ids).logits
    with found.offset(latent, 8.0).applied(model), torch.no_grad():
        assert not torch.equal(model.hf(input_ids=ids).logits, plain)
    with found.ablation([latent]).applied(model), torch.no_grad():
        assert not torch.equal(model.hf(input_ids=ids).logits, plain)
    assert torch.equal(model.hf(input_ids=ids).logits, plain)
    with pytest.raises(UserError, match="latents 0 to 11"):
        found.offset(12)


def test_shards_stream_and_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        texts = [f"the {'xyzq'[i % 4]} {'abcd'[i // 4 % 4]} fox dog the a b c d {i % 7}" for i in range(n)]
        stored = record(pair(), texts, ["resid_post"], positions="all", layers=[1], store=tmp_path / str(n))
        site = SiteRows.of(stored, "crosscoder", 1, "all", 0)
        generator = np.random.default_rng(0)
        return max(given.untyped_storage().nbytes() for given, _ in site.shuffled(16, generator))

    assert peak(40) == peak(160)


def test_the_same_from_shards_as_from_memory(tmp_path: Path) -> None:
    texts = Prompts.of([f"the {'xyzq'[i % 4]} {'abcd'[i // 4]} fox" for i in range(16)])
    options: dict[str, Any] = {"width": 8, "k": 2, "epochs": 2, "batch_size": 16}
    made = [
        tuning_dictionary(record(pair(), texts, ["resid_post"], positions="all", layers=[1], store=store), **options)
        for store in ("memory", tmp_path / "shards")
    ]
    pd.testing.assert_frame_equal(made[0].table, made[1].table)


def test_area_under_the_curve_by_hand() -> None:
    scores = np.array([[1.0, 3.0], [2.0, 3.0], [3.0, 3.0], [4.0, 3.0]])
    assert auroc(scores, np.array([False, True, False, True])).tolist() == [0.75, 0.5]
    assert np.isnan(auroc(scores, np.array([True] * 4))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, "residual site of layer 2"),
        ({"k": 64}, "k is 64 of 64"),
        ({"batch_size": 10**6}, "fewer than one batch"),
        ({"labels": ["a"] * PROMPTS, "epochs": 1}, "have 1"),
        ({"labels": [None] * PROMPTS, "epochs": 1}, "No recorded prompt has a label"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tuning_dictionary(planted().recording, **{**OPTIONS, **options})


def calls_of_tuning_dictionary() -> Calls:
    recorded = record(pair(), rows(12), ["resid_post"], positions="all", layers=[0, 1])
    labels = [number % 2 for number in range(12)]
    small = {"width": 12, "k": 2, "epochs": 3, "batch_size": 8, "learning_rate": 2e-3, "top": 3, "examples": 2,
             "draws": 30, "tokens": "all", "seed": 3}  # fmt: skip
    first = tuning_dictionary(recorded, "difference", layer=1, **small)
    folder = first.save_dictionary(Path(_scratch()) / "sae")
    return Calls([
        {"recording": recorded, "kind": "difference", "layer": 1, "labels": labels, **small},
        {"recording": recorded, "kind": "difference", "layer": 1, "dictionary": str(folder), "tokens": "all"},
    ])  # fmt: skip


@cache
def _scratch() -> str:
    import tempfile

    return tempfile.mkdtemp()
