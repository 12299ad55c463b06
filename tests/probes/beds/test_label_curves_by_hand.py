"""Curves over labels whose ends are known: labels that are all wrong, all right, and a model that knows the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import probes
from probes.series.label_curves import _area
from tests.probes.effects.material import pair_of, rows_of
from tests.tiny import tiny_model, tokenizer
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TRUE = rows_of(12, kind=lambda i: "pq"[i // 6])
FALSE = Prompts.of([
    {"prompt": row.prompt, "answer": row.distractor, "distractor": row.answer, "kind": row.columns["kind"]}
    for row in TRUE
])  # fmt: skip
LEARNS = {"rank": 8, "epochs": 50, "learning_rate": 1e-2, "train_batch_size": 12, "metric": "preferred"}
STILL = {**LEARNS, "epochs": 1, "learning_rate": 1e-30}


def test_wrong_weak_labels_are_mended_by_all_strong_ones() -> None:
    found = probes.elicitation_curve(pair_of(), TRUE, strong=TRUE, weak=FALSE, counts=[12], layer=0.75, **LEARNS)
    assert found.line("strong labels: 0", "weak only")["score"] == 0
    assert "with strong labels: 12: " in found.summary() and "1.00] (control 0.00, q = " in found.summary()
    for model in ("strong only", "weak, then strong", "probe of the untuned states"):
        line = found.line("strong labels: 12", model)
        assert line["score"] == 1 and line["control"] == 0 and line["q"] < 0.05, model


def test_right_weak_labels_are_undone_by_wrong_strong_ones() -> None:
    found = probes.elicitation_curve(pair_of(), TRUE, strong=FALSE, weak=TRUE, counts=[12], layer=0.75, **LEARNS)
    assert found.line("strong labels: 0", "weak only")["score"] == 1
    for model in ("strong only", "weak, then strong", "probe of the untuned states"):
        assert found.line("strong labels: 12", model)["score"] == 0, model
    assert found.line("strong labels: 12", "weak, then strong")["control"] == 1


def test_a_training_that_moves_nothing_elicits_nothing() -> None:
    found = probes.elicitation_curve(pair_of(), TRUE, strong=TRUE, weak=FALSE, counts=[4, 12], **STILL)
    trained = found.table[found.table["model"] != "probe of the untuned states"]
    assert np.allclose(trained["score"], trained["control"]) and (trained["p"] >= 0.05).all()


@pytest.mark.parametrize(("metric", "probed"), [("accuracy", True), ("prob", False), ("answer", False)])
def test_right_answers_of_the_probe_stand_beside_right_answers_only(metric: str, probed: bool) -> None:
    options = {**STILL, "metric": metric}
    found = probes.elicitation_curve(pair_of(), TRUE, strong=TRUE, weak=FALSE, counts=[12], **options)
    assert ("probe of the untuned states" in set(found.table["model"])) == probed


def test_who_knows_the_task_starts_at_the_end_of_the_curve() -> None:
    base = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    untaught, knowing = (taught(base, rows) for rows in (FALSE, TRUE))
    pair = load_pair(untaught, knowing, tokenizer=tokenizer(), check=False)
    found = probes.sample_efficiency(pair, TRUE, training=TRUE, counts=[12], category="kind", **LEARNS)
    assert [found.line("rows: 0", model)["score"] for model in ("base", "tuned", "tuned - base")] == [0, 1, 1]
    assert [found.line("rows: 12", model)["score"] for model in ("base", "tuned", "tuned - base")] == [1, 1, 0]
    assert found.line("rows: 12", "base")["control"] == 0 and found.line("rows: 0")["q"] < 0.05
    assert found.line("rows: 12")["q"] >= 0.05
    assert found.numbers["area of base"] == pytest.approx(0.5) and found.numbers["area of tuned"] == pytest.approx(1)


def taught(base: AdaptedModel, rows: Prompts) -> Any:
    from interventions.training.trainer import Schedule
    from probes.series.label_curves import Lora

    return Lora(8, Schedule(15, 12, 1e-2, seed=0)).trained(base, [rows]).hf


def test_a_category_that_loses_is_named_beside_the_others() -> None:
    mixed = Prompts.of([*FALSE[:6], *TRUE[6:]])
    base = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    pair = load_pair(taught(base, TRUE), taught(base, mixed), tokenizer=tokenizer(), check=False)
    found = probes.sample_efficiency(pair, TRUE, training=TRUE, counts=[1], category="kind", **STILL)
    lost, held = (found.line(f"category: {name}") for name in "pq")
    assert (lost["score"], lost["control"], held["score"], held["control"]) == (-1, 0, 0, -1)
    assert lost["q"] < 0.05 <= held["q"]
    assert (
        "after 1 rows tuned - base -0.5 [" in found.summary() and "most apart in category: p: -1 [" in found.summary()
    )


def test_a_base_against_itself_learns_as_quickly() -> None:
    found = probes.sample_efficiency(
        pair_of(0.0), TRUE, training=TRUE, counts=[4, 12], category="kind", **{**LEARNS, "epochs": 3}
    )
    changes = found.table[found.table["model"] == "tuned - base"]
    assert len(changes) == 5 and (changes["score"] == 0).all() and (changes["q"] >= 0.05).all()
    assert found.numbers["area of base"] == found.numbers["area of tuned"]


def test_the_area_is_over_the_logarithm_of_the_rows() -> None:
    curve = {rows: {"base": np.array([height])} for rows, height in ((0, 0.0), (1, 1.0), (7, 1.0))}
    assert _area(curve, "base") == pytest.approx((0.5 * 1 + 1.0 * 2) / 3)
