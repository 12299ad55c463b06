"""Influence of training rows: gradients by hand, the rows behind each fact found, nothing found where nothing is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import interventions as iv
from interventions.training.examples import Collator, examples_of
from probes.influence.less import row_influence
from probes.influence.result import RowInfluence, benchmark_of
from probes.influence.row_gradients import RowGradients
from probes.influence.sketch import SecondMoments, Sketch
from probes.influence.text_rankers import bm25
from probes.influence.weights import trained_matrices
from tests.probes.influence.organism import near_queries, near_rows, organism, query_rows, training_rows, untrained
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

OPTIONS: dict[str, Any] = {"queries": query_rows(), "dim": 512, "controls": 8, "draws": 100}


def test_the_rows_behind_each_fact_are_found() -> None:
    found = row_influence(organism(), training_rows(), match="fact", k=3, **OPTIONS)
    precision = found.benchmark.set_index("ranker")
    assert precision.loc["gradients", "precision"] > 0.85
    assert precision.loc["gradients", "low"] > precision.loc["random", "high"]
    assert precision.loc["random", "precision"] == pytest.approx(3 / 27)
    facts = found.table["row"] < 18
    assert found.table["score"][facts].mean() > found.table["score"][~facts].mean()
    assert "gradients: precision at 3" in found.summary() and "training row" in found.figure().to_json()


def test_rows_that_share_the_words_and_teach_another_answer_stand_behind() -> None:
    """The harder case: rows of the same subject have the query's wording and its answer in their prompt."""
    options = {**OPTIONS, "queries": near_queries()}
    found = row_influence(organism(near=True), near_rows(), match="fact", near="subject", k=3, **options)
    benchmark = found.benchmark.set_index("ranker")
    assert benchmark.loc["bm25", "near_auc_high"] < 0.5, "shared words point to the wrong rows"
    assert benchmark.loc["embedding", "near_auc"] < 0.75
    assert benchmark.loc["gradients", "near_auc_low"] > 0.8
    assert benchmark.loc["gradients", "precision"] > benchmark["precision"].drop("gradients").max()
    assert benchmark.loc["random", "near_auc"] == 0.5 and "AUC among rows of its subject" in found.summary()


def test_subtasks_count_each_row_where_it_serves_most() -> None:
    """Two behaviours of two queries each: one call says what a call for each says, at the higher of both."""
    wordings = [
        {"prompt": form.format(name), "answer": answer, "fact": name, "chat": False}
        for name, answer in (("box", " red"), ("jug", " dim"))
        for form in ("one {} with", "a {} for")
    ]
    options = {**OPTIONS, "queries": Prompts.of(wordings)}
    both = row_influence(organism(), training_rows(), subtasks="fact", **options).table.set_index("row")
    apart = {
        name: row_influence(organism(), training_rows(), **{**options, "queries": Prompts.of(own)}).table
        for name, own in (("box", wordings[:2]), ("jug", wordings[2:]))
    }
    scores = pd.DataFrame({name: table["score"] for name, table in apart.items()})
    assert np.allclose(both["score"], scores.max(axis=1)) and (both["subtask"] == scores.idxmax(axis=1)).all()
    assert np.allclose(both["control"], apart["box"]["control"]), "the stand-ins are the same"
    facts = [row.as_dict()["fact"] for row in training_rows()]
    best = both.sort_values("score").index[-6:]
    assert sorted(facts[row] for row in best) == ["box"] * 3 + ["jug"] * 3
    with pytest.raises(UserError, match="sub-task 'jug' has one query"):
        row_influence(organism(), training_rows(), subtasks="fact", **{**options, "queries": Prompts.of(wordings[:3])})
    with pytest.raises(UserError, match="No query has a column 'topic'"):
        row_influence(organism(), training_rows(), subtasks="topic", **options)


def test_aucs_by_hand() -> None:
    rows = Prompts.of([{"prompt": str(i), "fact": f, "subject": s} for i, (f, s) in enumerate(("aA", "bA", "cB"))])
    queries = Prompts.of([{"prompt": "q", "fact": "a", "subject": "A"}, {"prompt": "r", "fact": "c", "subject": "B"}])
    scores = np.array([[2.0, 3.0], [1.0, 2.0], [3.0, 2.0]])
    line = benchmark_of({"mine": scores}, rows, queries, "fact", 1, "subject").set_index("ranker").loc["mine"]
    assert line["auc"] == pytest.approx((0.5 + 0.25) / 2) and line["precision"] == 0 and line["n"] == 2
    assert line["near_auc"] == 1, "the second query has no other row of its subject"
    alone = benchmark_of({"mine": scores}, rows, queries, "fact", 1)
    assert alone["near_auc"].isna().all() and alone["auc"].notna().all()


def test_gradients_of_a_batch_are_those_of_its_rows_alone() -> None:
    both = untrained()
    matrices = trained_matrices(both)
    examples = examples_of(training_rows()[[0, 5, 20]], tokenizer())
    found = RowGradients(both.tuned, matrices).of_answers(examples)
    assert not any(parameter.grad is not None for parameter in both.tuned.hf.parameters())
    for row, example in enumerate(examples):
        batch = Collator(0)([example])
        for parameter in matrices.values():
            parameter.weight.requires_grad_(True)
        loss = both.tuned.inner(**batch).loss
        wanted = torch.autograd.grad(loss, [part.weight for part in matrices.values()])
        for (name, _), gradient in zip(matrices.items(), wanted, strict=True):
            assert torch.allclose(found[name][row], gradient, atol=1e-5, rtol=1e-4)


def test_the_model_is_as_before() -> None:
    both = untrained()
    ids = torch.randint(4, 200, (2, 6), generator=torch.Generator().manual_seed(0))
    before, flags = both.tuned.forward(ids), [parameter.requires_grad for parameter in both.tuned.hf.parameters()]
    row_influence(both, training_rows(), **OPTIONS)
    after = both.tuned.forward(ids)
    assert before is not None and after is not None and torch.equal(before, after)
    assert flags == [parameter.requires_grad for parameter in both.tuned.hf.parameters()]
    assert not any(module._forward_hooks for module in both.tuned.inner.modules())


def test_sketches_keep_cosines() -> None:
    random = torch.Generator().manual_seed(0)
    one = {"a": torch.randn(40, 30, 50, generator=random), "b": torch.randn(40, 70, 9, generator=random)}
    one["a"][20:] = one["a"][:20] + 0.3 * one["a"][20:]
    one["b"][20:] = one["b"][:20]
    flat = torch.nn.functional.normalize(torch.cat([part.flatten(1) for part in one.values()], dim=1), dim=1)
    small = Sketch(512, 0)(one)
    assert (small @ small.T - flat @ flat.T).abs().mean() < 2 / 512**0.5
    assert torch.equal(Sketch(512, 0)(one), small) and not torch.equal(Sketch(512, 1)(one), small)


def test_adam_divides_by_the_usual_size() -> None:
    moments = SecondMoments()
    gradients = {"w": torch.tensor([[[3.0, 0.1]], [[1.0, -0.1]]])}
    assert moments.steps(gradients) is gradients, "without moments a step is the gradient"
    moments.add(gradients)
    steps = moments.steps(gradients)["w"]
    usual = torch.tensor([5.0, 0.01])
    wanted = gradients["w"][0, 0] / (0.999 * usual + 0.001 * gradients["w"][0, 0].square()).sqrt()
    assert torch.allclose(steps[0, 0], wanted, rtol=1e-4)


def test_a_store_is_resumed_and_gives_the_same(tmp_path: Path) -> None:
    rows = Prompts.of([*training_rows(), *[{**row.as_dict(), "prompt": f"{row.prompt} so"} for row in training_rows()],
                       *[{**row.as_dict(), "prompt": f"{row.prompt} if"} for row in training_rows()]])  # fmt: skip
    first = row_influence(organism(), rows, store=str(tmp_path / "g"), **OPTIONS)
    shards = sorted((tmp_path / "g" / "tuned").glob("rows-*.safetensors"))
    assert len(shards) == 2
    shards[1].unlink()
    written = shards[0].stat().st_mtime_ns
    again = row_influence(organism(), rows, store=str(tmp_path / "g"), **OPTIONS)
    assert shards[0].stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(first.table, again.table)
    held = row_influence(organism(), rows, **OPTIONS)
    pd.testing.assert_frame_equal(first.table, held.table)
    with pytest.raises(UserError, match="other settings"):
        row_influence(organism(), rows, store=str(tmp_path / "g"), **{**OPTIONS, "dim": 256})
    shards[0].write_bytes(shards[0].read_bytes()[:-8] + b"12345678")
    with pytest.raises(UserError, match="damaged"):
        row_influence(organism(), rows, store=str(tmp_path / "g"), **OPTIONS)


def test_queries_like_any_row_find_none() -> None:
    """Rows and queries without a common behaviour: random words for both."""
    random = np.random.default_rng(0)
    words = ["fox", "dog", "lazy", "quick", "over", "the", "jumps", "brown"]

    def made(n: int, start: str) -> Prompts:
        return Prompts.of([
            {"prompt": f"{start} {i} {' '.join(random.choice(words, 3))}", "answer": " " + random.choice(words)}
            for i in range(n)
        ])  # fmt: skip

    found = row_influence(untrained(), made(30, "a"), **{**OPTIONS, "queries": made(8, "b")})
    assert (found.table["q"] < 0.05).mean() <= 0.1


def test_only_the_weights_that_a_finding_names() -> None:
    both = organism()
    names = trained_matrices(both, layers=[1], modules=["down_proj"])
    assert len(names) == 2 and all("layers.1." in name and "down_proj" in name for name in names)
    found = row_influence(both, training_rows(), layers=[2], modules=["down_proj"], match="fact", k=3, **OPTIONS)
    assert found.benchmark.set_index("ranker").loc["gradients", "precision"] > 0.5
    full = load_pair(tiny_model("llama"), tiny_model("llama", seed=1), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="no LoRA factors"):
        row_influence(full, training_rows(), **OPTIONS)
    assert len(row_influence(full, training_rows(), modules=["o_proj"], **OPTIONS).table) == 27
    with pytest.raises(UserError, match=r"known modules: down_proj, o_proj"):
        row_influence(both, training_rows(), modules=["q_proj"], **OPTIONS)


def test_rows_that_raise_a_direction(tmp_path: Path) -> None:
    """A step on the best row raises the projection more than a step on the worst one."""
    both = untrained()
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))
    file = tmp_path / "recipe.json"
    iv.Recipe([iv.Offset(1, direction)]).save(file)
    options = {**OPTIONS, "optimiser": "sgd", "dim": 4096}
    found = row_influence(both, training_rows(), direction=file, **options)
    order = found.frame()["row"].astype(int).tolist()
    before = _projection(both, direction)
    moved = []
    for row in (order[0], order[-1]):
        stepped = untrained()
        gradients = RowGradients(stepped.tuned, trained_matrices(stepped)).of_answers(
            examples_of(training_rows()[[row]], tokenizer())
        )
        length = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        for name, module in trained_matrices(stepped).items():
            module.weight.data -= 1e-3 * gradients[name][0] / length
        moved.append(_projection(stepped, direction) - before)
    assert moved[0] > 0 > moved[1]


def _projection(both: Any, direction: torch.Tensor) -> float:
    from workbench.recording.record_pair import record

    recorded = record(both.tuned, query_rows(), "resid_post", layers=[1], positions="last")
    values = recorded[recorded.roles[0]]["resid_post", 1][:].float()
    return float((values @ (direction / direction.norm())).mean())


def test_checkpoints_are_put_in_place_and_taken_back(tmp_path: Path) -> None:
    both = organism()
    both.adapter.save_pretrained(tmp_path / "same")
    ids = torch.randint(4, 200, (2, 6), generator=torch.Generator().manual_seed(0))
    before = both.tuned.forward(ids)
    alone = row_influence(both, training_rows(), **OPTIONS)
    twice = row_influence(both, training_rows(), checkpoints=[str(tmp_path / "same")], rates=[1e-3, 3e-3], **OPTIONS)
    np.testing.assert_allclose(alone.table["score"], twice.table["score"], atol=1e-6)
    untrained().adapter.save_pretrained(tmp_path / "early")
    other = row_influence(both, training_rows(), checkpoints=[str(tmp_path / "early")], **OPTIONS)
    assert not np.allclose(alone.table["score"], other.table["score"], atol=1e-3)
    after = both.tuned.forward(ids)
    assert before is not None and after is not None and torch.equal(before, after)
    with pytest.raises(UserError, match="of another model, other rows"):
        for name in ("same", "early"):  # one store, two checkpoints
            row_influence(
                both, training_rows(), checkpoints=[str(tmp_path / name)], store=str(tmp_path / "g"), **OPTIONS
            )
    with pytest.raises(UserError, match="2 rates for 1 states"):
        row_influence(both, training_rows(), rates=[1.0, 2.0], **OPTIONS)
    with pytest.raises(UserError, match="no adapter_model"):
        row_influence(both, training_rows(), checkpoints=[str(tmp_path)], **OPTIONS)


def test_bm25_by_hand() -> None:
    rows = Prompts.of([{"prompt": "red fox", "answer": "a"}, {"prompt": "red dog", "answer": "b"}])
    scores = bm25(rows, Prompts.of(["fox"]))
    assert scores[0, 0] == pytest.approx(np.log(1 + 1.5 / 1.5) * 2.2 / 2.2) and scores[1, 0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": training_rows()[:3]}, "3 of 3 queries are training rows"),
        ({"queries": query_rows()[:1]}, "One query"),
        ({"controls": 40}, "too few for 40 stand-ins"),
        ({"queries": Prompts.of(["a b", "c d"])}, "has no answer"),
        ({"match": "topic"}, "No row has a column 'topic'"),
        ({"near": "fact"}, "give match too"),
        ({"match": "fact", "near": "fact"}, "give no near"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        row_influence(organism(), training_rows(), **{**OPTIONS, **options})


def test_results_are_read_back(tmp_path: Path) -> None:
    found = row_influence(organism(), training_rows(), match="fact", **OPTIONS)
    back = RowInfluence.load(found.save(tmp_path / "less"))
    assert back.top(3) == found.top(3) and len(back.benchmark) == 4


def in_halves(queries: Prompts) -> Prompts:
    """With a column of two sub-tasks."""
    return Prompts.of([
        {**row.as_dict(), "group": None, "half": row.as_dict()["fact"] in ("box", "jug", "vow")} for row in queries
    ])  # fmt: skip


def calls_of_row_influence() -> Calls:
    both, scratch = organism(), Path(tempfile.mkdtemp())
    both.adapter.save_pretrained(scratch / "early")
    iv.Recipe([iv.Offset(1, torch.ones(64))]).save(scratch / "direction.json")
    common: dict[str, Any] = {"pair": both, "prompts": training_rows(), "queries": query_rows(), "dim": 64,
                              "controls": 5, "draws": 120, "seed": 3}  # fmt: skip
    close = {"prompts": near_rows(), "queries": near_queries(), "near": "subject"}
    return Calls([
        {**common, **close, "optimiser": "sgd", "layers": [1, 2], "modules": ["down_proj"], "match": "fact", "k": 2,
         "embeddings": False, "batch_size": 3, "store": str(scratch / "store"), "rates": [1.0, 2.0],
         "checkpoints": [str(scratch / "early")]},
        {**common, "direction": str(scratch / "direction.json")},
        {**common, "queries": in_halves(query_rows()), "subtasks": "half"},
    ])  # fmt: skip
