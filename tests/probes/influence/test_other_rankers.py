"""Dictionary codes, demonstrations and retraining: identities by hand, planted rows found."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from probes.influence.codes import code_similarity, generalised_jaccard
from probes.influence.demonstrations import demonstration_utility
from probes.influence.less import row_influence
from probes.influence.retraining import Retraining, retrain_without
from tests.probes.influence.organism import dictionary, near_queries, near_rows, organism, query_rows, training_rows
from tests.probes.provenance import Calls
from workbench.errors import UserError
from workbench.prompts import Prompts


def test_generalised_jaccard_by_hand() -> None:
    codes = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.5, 2.0, 1.0]])
    found = generalised_jaccard(codes, codes)
    assert torch.allclose(found.diagonal(), torch.ones(3)) and found[0, 1] == 0
    assert found[0, 2] == pytest.approx(2.5 / 4)
    shuffled = codes[:, [2, 0, 1]]
    assert torch.allclose(generalised_jaccard(shuffled, shuffled), found)


def test_codes_rank_rows_of_the_same_fact_first() -> None:
    found = code_similarity(
        organism(), training_rows(), queries=query_rows(), dictionary=dictionary(), match="fact", k=3, controls=8
    )
    precision = found.benchmark.set_index("ranker")["precision"]
    assert precision["dictionary codes"] > 2 * precision["random"]


def test_codes_of_another_width_or_place_are_refused() -> None:
    narrow = dictionary()
    narrow.weights["W_enc"] = narrow.weights["W_enc"][:32]
    with pytest.raises(UserError, match="reads activations of width 32"):
        code_similarity(organism(), training_rows(), queries=query_rows(), dictionary=narrow, controls=8)
    with pytest.raises(UserError, match="nearly all rows"):
        code_similarity(
            organism(), training_rows(), queries=query_rows(), dictionary=dictionary(), controls=8, always_on=0.0
        )


def test_utilities_by_hand() -> None:
    rows, queries = training_rows()[:6], query_rows()[:2]
    found = demonstration_utility(organism(), rows, queries=queries, controls=4)
    assert len(found.table) == 6 and found.table["score"].abs().max() < 1
    model, hits = organism().base, []
    for shown in (f"{rows[0].prompt}{rows[0].answer}\n\n", ""):
        query = Prompts.of([{"prompt": f"{shown}{queries[0].prompt}", "answer": queries[0].answer, "chat": False}])
        from interventions.training.examples import examples_of

        example = examples_of(query, model.tokenizer, end=False)[0]
        logits = model.forward(torch.tensor([example.prompt + example.answer]))
        assert logits is not None
        chances = logits[0, len(example.prompt) - 1 : -1].softmax(-1)
        right = chances[torch.arange(len(example.answer)), torch.tensor(example.answer)]
        hits.append(float((1 - right).square().mean().sqrt()))
    both = demonstration_utility(organism(), rows, queries=Prompts([queries[0], queries[1]]), controls=4)
    single = 2 * both.table["score"][0] - _second(rows, queries)
    assert single == pytest.approx(hits[1] - hits[0], abs=1e-4)


def _second(rows: Prompts, queries: Prompts) -> float:
    """The utility of row 0 for the second query, from a call with that query twice (two groups)."""
    twin = Prompts.of([{**queries[1].as_dict(), "group": "one"}, {**queries[1].as_dict(), "group": "two"}])
    return float(demonstration_utility(organism(), rows, queries=twin, controls=4).table["score"][0])


@pytest.mark.slow
def test_without_the_rows_behind_it_the_behaviour_is_not_learnt() -> None:
    both, rows = organism(), training_rows()
    queries = query_rows()
    found = row_influence(both, rows, queries=queries, dim=512, controls=8, draws=100)
    made = retrain_without(both, rows, queries=queries, influence=found, drop=9, epochs=6, learning_rate=3e-3, rank=4)
    losses = made.table.set_index("rows")["score"]
    assert losses["all"] < made.untrained
    assert losses["without top"] > losses["without random"]
    assert "without as many random ones" in made.summary() and "untrained" in made.figure().to_json()
    assert not any("lora" in name and "default" not in name for name, _ in both.tuned.hf.named_parameters())
    with pytest.raises(UserError, match="of other training rows"):
        retrain_without(both, rows[:20], queries=queries, influence=found)
    with pytest.raises(UserError, match="cannot be left out"):
        retrain_without(both, rows, queries=queries, influence=found, drop=27)


def test_losses_are_averaged_over_trainings_whatever_ran_before() -> None:
    call = calls_of_retrain_without().given[0]
    torch.randn(3)
    both = retrain_without(**call).table
    single = [retrain_without(**{**call, "trainings": 1, "seed": seed}).table for seed in (3, 4)]
    for rows in ("all", "without top", "only top"):
        losses = [table.set_index("rows")["score"][rows] for table in single]
        assert losses[0] != losses[1]
        assert both.set_index("rows")["score"][rows] == pytest.approx(sum(losses) / 2)


def test_retraining_is_read_back(tmp_path: Path) -> None:
    call = calls_of_retrain_without().given[0]
    made = retrain_without(**call)
    assert Retraining.load(made.save(tmp_path / "r")).dropped == 2


def calls_of_code_similarity() -> Calls:
    folder = str(dictionary().save(Path(tempfile.mkdtemp()) / "sae"))
    common: dict[str, Any] = {"pair": organism(), "prompts": near_rows(), "queries": near_queries()}
    return Calls([
        {**common, "dictionary": folder, "layer": 2, "pool": "mean", "always_on": 0.8, "match": "fact", "k": 2,
         "near": "subject",
         "batch_size": 3, "controls": 4, "draws": 120, "seed": 3},
    ])  # fmt: skip


def calls_of_demonstration_utility() -> Calls:
    return Calls([
        {"pair": organism(), "prompts": near_rows()[[0, 1, 2, 3, 4, 27, 29]], "queries": near_queries()[:2],
         "within": "tuned", "match": "fact", "near": "subject", "k": 2, "batch_size": 3, "controls": 3,
         "draws": 120, "seed": 3},
    ])  # fmt: skip


def calls_of_retrain_without() -> Calls:
    found = row_influence(organism(), training_rows(), queries=query_rows(), dim=64, controls=5, draws=100)
    file = found.save(Path(tempfile.mkdtemp()) / "less.safetensors")
    return Calls([
        {"pair": organism(), "prompts": training_rows(), "queries": query_rows(), "influence": str(file), "drop": 2,
         "rank": 2, "modules": ["o_proj"], "epochs": 1, "batch_size": 9, "learning_rate": 2e-3, "random_draws": 1,
         "trainings": 2, "draws": 120, "seed": 3},
    ])  # fmt: skip
