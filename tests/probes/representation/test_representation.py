"""Probes of states: planted features, scikit-learn as oracle, rotations, and a base against itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import probes
from probes.effects.panel import table_of
from probes.representation.classifier import classes_of, compact, dealt_folds, held_out_probabilities, held_out_right
from probes.representation.concept_words import word_lines
from probes.representation.cross_task import _by_layer
from probes.representation.gap import gap_lines, nested_right
from probes.representation.in_context import similarity_line
from probes.representation.instructions import densities, influence, span_of, span_score
from probes.representation.neurons import _with_intervals, areas, combined_accuracy, neuron_table
from probes.representation.separability import aligned, between_share, centred_on
from probes.representation.source_trust import GradientSketch, trust_lines
from probes.representation.suite import control_tasks, equivalence_p, suite_table
from probes.results import ProbeResult
from tests.probes.effects.material import pair_of, rows_of
from tests.probes.provenance import Calls
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

ROWS = rows_of(24, task=lambda i: "abc"[i % 3], tag=lambda i: "ab"[i % 2], item=lambda i: f"i{i % 4}",
               instruction=lambda _: "the", language=lambda i: "xy"[i // 12])  # fmt: skip


def recorded(size: float = 0.1, sites: Any = "resid_post", **options: Any) -> Recording:
    return record(pair_of(size), ROWS, sites, **options)


def column(name: str) -> list[Any]:
    return [row.columns[name] for row in ROWS]


SPANS = [(0, 2)] * len(ROWS)


def calls_of_probe_suite() -> Calls:
    given = {"labels": column("task"), "kind": "mlp", "types": column("item"), "by": column("language"),
             "spans": SPANS, "by_position": True, "margin": 0.2, "folds": 3, "ridge": 2.0, "draws": 2}  # fmt: skip
    return Calls([{"recording": recorded(layers=[0], positions="all"), **given, "seed": 3}])


def calls_of_class_separability() -> Calls:
    given = {"labels": column("task"), "variants": column("language"), "spans": SPANS, "draws": 20, "seed": 3}
    return Calls([{"recording": recorded(positions="all"), **given}])


def calls_of_procrustes_drift() -> Calls:
    given = {"labels": column("task"), "spans": SPANS, "folds": 3, "draws": 20, "seed": 3}
    return Calls([{"recording": recorded(positions="all"), **given}])


def calls_of_concept_neurons() -> Calls:
    given = {"labels": column("task"), "concept": "a", "top": 2, "together": 2, "shown": 2, "folds": 3, "draws": 20}
    return Calls([{"recording": recorded(sites="mlp_post"), **given, "seed": 3}])


def calls_of_concept_words() -> Calls:
    given = {"words": ["fox", "dog"], "sizes": [1], "labels": "task", "layer": 1, "draws": 3, "folds": 3, "ridge": 2.0}
    return Calls([{"pair": pair_of(), "prompts": ROWS, **given, "batch_size": 4, "seed": 3}])


def calls_of_representation_gap() -> Calls:
    given = {"shots": 1, "layers": [0], "kind": "mlp", "metric": "prob", "folds": 3, "ridge": 2.0}
    return Calls([{"pair": pair_of(), "prompts": ROWS, **given, "max_new_tokens": 3, "batch_size": 4, "seed": 3}])


def calls_of_in_context_activations() -> Calls:
    given = {"shots": 1, "sites": ["resid_post"], "layers": [0, 1], "batch_size": 4, "seed": 3}
    return Calls([{"pair": pair_of(), "prompts": ROWS, **given}])


def calls_of_cross_task() -> Calls:
    given = {"tasks": "group_", "shots": 1, "metric": "prob", "max_new_tokens": 3, "batch_size": 4, "seed": 3}
    return Calls([{"pair": pair_of(), "prompts": rows_of(12, group_=lambda i: "abc"[i % 3]), **given}])


def calls_of_instruction_attribution() -> Calls:
    rows = rows_of(8, words=lambda _: "the")
    given = {"instruction": "words", "writer": "answer", "max_new_tokens": 2, "seed": 3}
    return Calls([{"pair": pair_of(), "prompts": rows, **given}])


def calls_of_source_trust() -> Calls:
    rows = rows_of(8, source=lambda i: "ab"[i % 2], what=lambda i: f"i{i % 4}")
    given = {"tags": "source", "items": "what", "definitions": rows[:4], "metric": "prob", "max_new_tokens": 3}
    return Calls([{"pair": pair_of(), "prompts": rows, **given, "batch_size": 4, "seed": 3}])


def planted(n: int = 60, d: int = 80, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """A cell without the label and one with it along a few axes."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    noise = random.standard_normal((2, n, d))
    noise[1, :, :classes] += 4 * np.eye(classes)[y]
    return torch.from_numpy(noise).float(), y


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_planted_feature_is_read_where_it_is_and_nowhere_else(kind: Any) -> None:
    x, y = planted()
    dealt = dealt_folds(5, np.arange(60), y, 0)
    tasks = np.concatenate([y[None], control_tasks(y, np.arange(60), 3, 0)])
    right = held_out_right(x, tasks, np.repeat(dealt[None], 4, 0), kind=kind).mean(-1)
    assert right[1, 0] > 0.9 and right[0, 0] < 0.6 and right[1, 1:].mean() < 0.55


def test_an_exclusive_or_needs_the_non_linear_probe() -> None:
    random = np.random.default_rng(0)
    sides = random.integers(0, 2, (2, 160)) * 2 - 1
    y = (sides.prod(0) > 0).astype(np.int64)
    x = torch.from_numpy(np.concatenate([3 * sides.T, 0.3 * random.standard_normal((160, 4))], 1)).float()[None]
    dealt = dealt_folds(4, np.arange(160), y, 0)
    told = {kind: held_out_right(x, y[None], dealt[None], kind=kind).mean() for kind in ("linear", "mlp")}
    assert told["mlp"] > 0.95 and told["linear"] < 0.7


def test_linear_probes_are_scikit_learns_one_against_the_rest() -> None:
    x, y = planted(d=10)
    dealt = dealt_folds(4, np.arange(60), y, 0)
    mine = held_out_probabilities(x[1], y, np.arange(60), 4, 1.0, 0)
    rms = float(x[1].square().mean().sqrt())
    theirs = np.zeros_like(mine)
    for fold in range(4):
        train = dealt != fold
        for number in range(3):
            model = LogisticRegression(C=1.0, max_iter=1000).fit(x[1][train] / rms, y[train] == number)
            theirs[~train, number] = model.predict_proba(x[1][~train] / rms)[:, 1]
    np.testing.assert_allclose(mine, theirs / theirs.sum(1, keepdims=True), atol=0.03)
    wide = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(compact(wide) @ compact(wide).mT, wide @ wide.mT, atol=1e-3)


def test_base_against_itself_is_equivalent_and_a_loss_is_found() -> None:
    random = np.random.default_rng(1)
    right = random.random((2, 3, 80)) < 0.8
    lost = right.copy()
    lost[1, 0] &= random.random(80) < 0.5
    cells = [{"site": "resid_post", "layer": n} for n in range(2)]
    table = suite_table(cells, {"base": right, "tuned": lost}, np.arange(80), 0.1, 0)
    assert table["outcome"].tolist() == ["equivalent", "lost"] and table["q"][1] < 0.01
    few = suite_table(cells, {"base": right[..., :8], "tuned": right[..., :8]}, np.arange(8), 0.05, 0)
    assert set(few["outcome"]) == {"undecided"}  # eight prompts prove nothing
    assert equivalence_p(np.zeros((200, 1)), 0.05, 0)[0] < 0.05


def test_a_control_task_that_is_told_as_well_is_said() -> None:
    random = np.random.default_rng(2)
    told, guessed = random.random((2, 1, 80)) < 0.9, random.random((2, 3, 80)) < 0.5
    base = np.concatenate([told, guessed], 1)
    tuned = np.concatenate([np.stack([told[0], guessed[1, :1]]), guessed], 1)
    cells = [{"site": "resid_post", "layer": n} for n in range(2)]
    table = suite_table(cells, {"base": base, "tuned": tuned}, np.arange(80), 0.1, 0)
    assert table["readable"].tolist() == ["both", "base"]
    nowhere = suite_table(cells, {"base": guessed[:, [0, 1, 2]], "tuned": guessed[:, [1, 2, 0]]}, np.arange(80), 0.1, 0)
    assert nowhere["readable"].tolist() == ["neither"] * 2
    found = NULLS["probe_suite"]()
    assert ("told as well as the labels" in found.summary()) == ("neither" in set(found.table["readable"]))


def test_a_margin_that_so_few_prompts_cannot_decide_is_said() -> None:
    for margin, narrow in ((0.05, True), (0.5, False)):
        found = probes.probe_suite(recorded(0), folds=3, margin=margin)
        assert ("too narrow" in found.summary()) == narrow
        assert set(found.table["outcome"]) == ({"undecided"} if narrow else {"equivalent"})


NULLS: dict[str, Any] = {
    "probe_suite": lambda: probes.probe_suite(recorded(0), folds=3),
    "class_separability": lambda: probes.class_separability(recorded(0), draws=30),
    "procrustes_drift": lambda: probes.procrustes_drift(recorded(0), draws=30),
    "concept_neurons": lambda: probes.concept_neurons(recorded(0, "mlp_post"), top=2, draws=20),
    "in_context_activations": lambda: probes.in_context_activations(pair_of(0), ROWS, shots=1),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_base_against_itself_shows_nothing(name: str, tmp_path: Path) -> None:
    found = NULLS[name]()
    assert np.allclose(found.table["score"], 0, atol=1e-6) and (found.table["q"] > 0.05).all()
    assert found.figure().data and found.summary()
    again = ProbeResult.load(found.save(tmp_path / "result"))
    assert again.frame().equals(found.frame())


def test_effects_of_a_base_against_itself() -> None:
    pair = pair_of(0)
    found = [
        probes.concept_words(pair, ROWS, words=["fox", "dog"], draws=2, folds=3),
        probes.source_trust(pair, ROWS, definitions=ROWS[:4], metric="prob"),
        probes.instruction_attribution(pair, ROWS[:3], max_new_tokens=2),
    ]
    for one in found:
        change = one.table[one.table["model"] == "tuned - base"]
        assert (change["score"].abs() < 1e-6).all() and (change["q"].dropna() > 0.05).all() and one.figure().data


def test_heads_and_places_are_cells() -> None:
    found = probes.probe_suite(recorded(sites=["z", "resid_post"], positions=[-2, -1], layers=[1]), folds=3,
                               by_position=True)  # fmt: skip
    assert set(found.table["position"]) == {-1, -2} and (found.table["site"] == "z").sum() == 2 * 4
    with pytest.raises(UserError, match="two or more classes"):
        probes.probe_suite(recorded(), ["a"] * 24)
    with pytest.raises(UserError, match="has 3 rows and a probe needs 4"):
        classes_of(["a"] * 3 + ["b"] * 9)
    with pytest.raises(UserError, match="record a pair"):
        probes.probe_suite(record(pair_of().base, ROWS, "resid_post"))


def test_share_between_classes_is_epsilon_squared() -> None:
    x, y = planted()
    for cell, least in ((0, -0.2), (1, 0.05)):
        own = x[cell].double().numpy()
        centred = own - own.mean(0)
        share = between_share(centred @ centred.T, y, np.ones((1, 60)))[0]
        inside = sum(((own[y == number] - own[y == number].mean(0)) ** 2).sum() for number in range(3))
        total = (centred**2).sum()
        assert share == pytest.approx(1 - (inside + 2 * inside / 57) / total, abs=1e-9) and share > least
    assert abs(between_share(np.eye(60) - 1 / 60, y, np.ones((1, 60)))[0]) < 0.05


def test_a_rotation_is_no_change_and_noise_is() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(60, 8, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator).double()).Q
    dealt = np.arange(60) % 4
    assert (aligned(base, base @ turn + 3, dealt) - base).abs().max() < 1e-9
    assert (centred_on(base, base + 3, dealt) - base).abs().max() < 1e-9
    assert (centred_on(base, base @ turn + 3, dealt) - base).square().sum(1).mean() / 8 > 0.5
    noisy = base @ turn + 0.5 * torch.randn(60, 8, generator=generator).double()
    left = (aligned(base, noisy, dealt) - base).square().sum(1).mean() / 8
    assert 0.15 < left < 0.5


def test_areas_are_scikit_learns_and_a_planted_neuron_is_listed() -> None:
    random = np.random.default_rng(0)
    y = np.arange(40) % 2 == 0
    values = random.standard_normal((40, 5)).round(1)
    np.testing.assert_allclose(areas(values, y[None])[0], [roc_auc_score(y, values[:, n]) for n in range(5)])
    tuned = values.copy()
    tuned[:, 3] += 3 * y
    mixed = np.stack([random.permutation(y) for _ in range(200)])
    table, _ = neuron_table({"base": values, "tuned": tuned}, y, mixed)
    assert table["score"].idxmax() == 3 and table["p"][3] < 0.01 and table["tuned"][3] > 0.9
    dealt = np.arange(40) // 10
    assert combined_accuracy(tuned, y, dealt, 1) > 0.9 > combined_accuracy(values, y, dealt, 1)


def test_a_gain_lies_within_its_interval_where_the_base_tells_nothing() -> None:
    """Distances from 0.5 are never negative: resampled, that of a base at 0.5 would always be above it."""
    y = np.arange(40) % 2 == 0
    base = np.repeat(np.random.default_rng(0).standard_normal(20), 2)[:, None]
    values = {"base": base, "tuned": base + 10 * y[:, None]}
    table, _ = neuron_table(values, y, np.stack([y]))
    (row,) = _with_intervals(
        table.assign(layer=0, site="mlp_post"), {(0, -1, "mlp_post"): values}, y, np.arange(40), 200, 0
    ).to_dict("records")
    assert row["base"] == 0.5 and row["score"] == 0.5 and row["low"] < 0.5 < row["high"]


def test_words_that_say_no_more_than_random_ones_are_told() -> None:
    random = np.random.default_rng(0)
    chance = (random.random((20, 100)) < 0.6).astype(float)
    best = np.ones(100)
    right = {("base", 5): (random.random(100) < 0.6).astype(float), ("tuned", 5): best}
    table = table_of(word_lines(right, {("base", 5): chance, ("tuned", 5): chance}, [5], np.arange(100), 0))
    table = table.set_index("model")
    assert table.loc["tuned", "p"] < 0.05 < table.loc["base", "p"] and table.loc["tuned - base", "q"] < 0.05


def test_gaps_split_what_is_missing() -> None:
    n = 40
    arms = {"base, zero-shot": np.zeros(n), "base, in context": np.zeros(n), "base, probe": np.ones(n),
            "tuned, probe": np.ones(n), "tuned, zero-shot": np.ones(n)}  # fmt: skip
    table = table_of(gap_lines(arms, {}, 0.5, np.arange(n), 0)).set_index("group")
    assert table.loc["read-out gap", "score"] == 1 and table.loc["representation gap", "score"] == 0
    x, y = planted(d=12)
    dealt = dealt_folds(4, np.arange(60), y, 0)
    assert nested_right([one.numpy() for one in x], y, dealt, "linear", 1.0, 0).mean() > 0.9


def test_representation_gap_of_a_pair() -> None:
    found = probes.representation_gap(pair_of(0), ROWS, shots=1, folds=3, layers=[0, 2])
    assert found.line("added by tuning to the states")["score"] == 0
    zero = found.table.set_index("group")["score"]
    assert zero["base, zero-shot"] == zero["tuned, zero-shot"]
    assert "read-out gap (base, probe less base, in context) " in found.summary()


def test_a_tune_that_moves_as_examples_do_has_cosine_one() -> None:
    generator = torch.Generator().manual_seed(0)
    shift, other = torch.randn(20, 16, generator=generator), torch.randn(20, 16, generator=generator)
    line = similarity_line(2 * shift, shift, other, np.arange(20), 0)
    assert line["score"] == pytest.approx(1) and abs(line["control"]) < 0.3 and line["p"] < 0.01
    assert (
        line["explained"] == pytest.approx(1) and similarity_line(0 * shift, shift, other, np.arange(20), 0)["p"] == 1
    )
    with pytest.raises(UserError, match="shots of 1 or more"):
        probes.in_context_activations(pair_of(), ROWS, shots=0)


def test_similarity_that_follows_gain_is_found_against_exchanged_tasks() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((6, 3))
    gain = vectors @ vectors.T + 0.01 * random.standard_normal((6, 6))
    other = random.standard_normal((6, 6))
    table = _by_layer([other + other.T, vectors @ vectors.T], gain, 0)
    assert table["rho"][1] > 0.9 > table["rho"][0] and table["p"][0] < 0.05


def test_cross_task_of_a_base_against_itself() -> None:
    found = probes.cross_task(pair_of(0), rows_of(12, task=lambda i: "abc"[i % 3]), shots=1, metric="prob")
    sides = [found.table[found.table["model"] == role].reset_index(drop=True) for role in ("base", "tuned")]
    assert np.allclose(sides[0]["score"], sides[1]["score"]) and found.figure().data and found.summary()
    assert np.allclose(found.similarities.query("module == group")["cosine"], 1, atol=1e-5)


def test_densities_by_hand_and_influence_is_the_linear_models() -> None:
    even, spike = torch.ones(2, 16), torch.zeros(1, 16)
    spike[0, 0] = 1
    found = densities(torch.cat([even, spike]))
    assert found[0] == pytest.approx(16 / 16**0.25) and found[2] == pytest.approx(1)
    assert span_score(found, (0, 1)) == pytest.approx(1 / np.log2(3)) and span_score(np.zeros(3), (0, 1)) == 0
    model = pair_of().base
    ids = model.encode(["the quick"]).input_ids[0].tolist()
    got = influence(model, ids, [7, 9])
    torch.testing.assert_close(influence(model, ids, [7, 9], steps=[1]), got[:, 1:])
    table = model.inner.get_input_embeddings().weight
    embedded = table[torch.tensor([[*ids, 7, 9]])].detach().requires_grad_(True)
    chance = model.inner(inputs_embeds=embedded, use_cache=False).logits[0, len(ids) - 1].softmax(-1)[7]
    (slope,) = torch.autograd.grad(chance, embedded)
    torch.testing.assert_close(got[:, 0], (slope[0] * embedded[0]).sum(-1)[: len(ids)].detach(), atol=1e-6, rtol=1e-4)
    assert not model.inner.get_input_embeddings()._forward_hooks
    start, end = span_of(ROWS[0], "quick", model.tokenizer, 0)
    assert model.tokenizer.decode(model.encode([ROWS[0].prompt]).input_ids[0, start:end]).strip() == "quick"
    with pytest.raises(UserError, match="does not hold its instruction"):
        span_of(ROWS[0], "absent", model.tokenizer, 0)


def test_trust_is_a_gap_between_tags() -> None:
    of = np.array(["reliable", "wild"] * 20)
    scores = {"base": np.zeros(40), "tuned": (of == "reliable").astype(float)}
    table = table_of(trust_lines(scores, of, ["reliable", "wild"], np.arange(40), 0)).set_index(["group", "model"])
    gap = table.loc[("reliable - wild", "tuned - base")]
    assert gap["score"] == 1 and gap["low"] > 0.5 and gap["q"] < 0.01
    assert table.loc[("wild", "tuned - base"), "score"] == 0


def test_sketches_keep_cosines_and_leave_the_model_as_it_was() -> None:
    model = pair_of().base
    flags = [parameter.requires_grad for parameter in model.inner.parameters()]
    sketch = GradientSketch(model, 0)
    first, second = (sketch.of_answer(ROWS[n]) for n in (0, 2))
    assert [parameter.requires_grad for parameter in model.inner.parameters()] == flags

    def dense(row: Any) -> torch.Tensor:
        ids = model.encode([f"{row.prompt}{row.answer}"]).input_ids
        size = ids.shape[1] - model.encode([row.prompt]).input_ids.shape[1]
        loss = torch.nn.functional.cross_entropy(model.inner(ids).logits[0, -size - 1 : -1], ids[0, -size:])
        slopes = torch.autograd.grad(loss, list(model.inner.parameters()))
        return torch.cat([slope.flatten() for slope in slopes])

    true = torch.nn.functional.cosine_similarity(dense(ROWS[0]), dense(ROWS[2]), dim=0)
    assert abs(float(torch.nn.functional.cosine_similarity(first, second, dim=0) - true)) < 0.06


def test_answers_of_several_rows_are_checked() -> None:
    with pytest.raises(UserError, match="has no 'task'"):
        probes.cross_task(pair_of(), Prompts([dataclasses.replace(ROWS[0], columns={})] * 3))
    with pytest.raises(UserError, match="no concept words"):
        probes.concept_words(pair_of(), ROWS)
