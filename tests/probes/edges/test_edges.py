"""Edges: runs are exact, gradients complete, circuits judged as MIB does, and a cut wire is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from probes.edges.attribution import FOUND, EdgeAttribution, edge_attribution, found_again, sought
from probes.edges.faithfulness import area, leading
from probes.edges.graph import Graph
from probes.edges.sending import EdgeRun, sent
from probes.patches.task import make_task
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.bench.tracr.pairs import cut_pairs
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

FAMILIES = ["llama", "gpt2", "qwen3", "phi3", "mixtral"]


def model(family: str = "llama") -> AdaptedModel:
    return AdaptedModel(tiny_model(family), tokenizer(), name=family)


def rows(n: int = 8) -> Prompts:
    return Prompts.of([
        {"prompt": f"the {'xyzq'[i % 4]} {'abcd'[i // 4]}", "contrast": f"the r {'abcd'[i // 4]}", "answer": " fox",
         "distractor": " dog"}
        for i in range(n)
    ])  # fmt: skip


def calls_of_edge_attribution() -> Calls:
    base = tiny_model("llama", num_hidden_layers=1)  # the number of edges, each a pass, grows with the layers squared
    subject = load_pair(base, tuned_copy(base, size=0.1), tokenizer=tokenizer(), check=False)
    given = {"subject": subject, "prompts": rows(), "steps": 2, "curve": True, "kept": 40, "least": 0.1, "controls": 1,
             "batch_size": 2, "draws": 50, "seed": 3}  # fmt: skip
    return Calls([given, {**given, "prompts": rows(2), "method": "exact", "curve": False}])


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_that_carry_all_of_another_run_give_its_answer_and_none_the_own(family: str) -> None:
    subject = model(family)
    graph, task = Graph(subject), make_task(subject, rows(), "corrupted", "clean")
    corrupted, clean = task.batch(list(range(8)))
    other, theirs = sent(graph, corrupted)
    run = EdgeRun(graph, other)
    plain = subject.forward(clean, logits="last")
    assert plain is not None and torch.equal(run(clean, None), plain[:, -1])
    torch.testing.assert_close(run(clean, graph.possible), theirs, atol=1e-4, rtol=1e-4)
    assert subject.n_hooks == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_what_leaves_the_embedding_adds_up_to_the_gap(family: str) -> None:
    """Integrated gradients are complete: the embedding's edges are every way from the input to the answer."""
    found = edge_attribution(model(family), rows(), steps=30, kept=10_000, draws=50)
    total = found.table.loc[found.table["sender"] == "embed", "score"].sum()
    assert total == pytest.approx(found.gaps["model"], rel=0.02) and abs(total) > 0.05


def test_a_cut_wire_is_in_the_base_alone() -> None:
    """Tracr's histogram without the wire from its head to its MLP."""
    made = {edge: (cut, prompts) for cut, edge, prompts in cut_pairs("hist")}
    wire = ("L0H0", "L0 MLP")
    cut, prompts = made[wire]
    found = edge_attribution(cut, prompts, method="exact", kept=10_000, draws=200, batch_size=32)
    assert f"{wire[0]} -> {wire[1]}" in found.only_in("base") and not found.only_in("tuned")
    line = found.table.set_index(["sender", "receiver"]).loc[wire]
    assert line["tuned"] == 0 and line["base"] != 0 and line["q"] < 0.05


def test_base_against_itself_has_no_edge_of_its_own(tmp_path: Path) -> None:
    twice = load_pair(tiny_model("llama"), tiny_model("llama"), tokenizer=tokenizer(), check=False)
    found = edge_attribution(twice, rows(), steps=2, draws=50)
    assert (found.table["score"] == 0).all() and (found.table["q"] == 1).all()
    assert not found.only_in("base") and not found.only_in("tuned")
    back = EdgeAttribution.load(found.save(tmp_path / "edges"))
    assert "edges" in back.summary() and len(back.figure().data)


def test_whole_circuits_are_faithful_and_the_change_is_rebuilt_by_all_edges() -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama")
    torch.nn.init.normal_(tuned.model.layers[1].mlp.down_proj.weight, std=0.3)  # inside a block: edges can carry it
    both = load_pair(base, tuned, tokenizer=tokenizer(), check=False)
    found = edge_attribution(both, rows(3), steps=1, curve=True, controls=1, draws=50)
    assert found.curve is not None and found.areas is not None
    whole = found.curve[found.curve["share"] == 1.0]
    assert set(whole["model"]) == {"base", "tuned", "change"}
    assert whole["faithfulness"].to_numpy() == pytest.approx(1.0, abs=1e-2)
    assert set(found.areas["method"]) == {"signed", "size", "random 1"}
    assert (found.areas["cmd_low"] <= found.areas["cmd"]).all() and len(found.figure().data) == 9


def test_edges_are_found_again_where_prompts_agree() -> None:
    """Of a thousand edges a hundred are large: in every prompt, or each in one prompt alone."""
    draw = np.random.default_rng(0)
    noise = 1e-3 * draw.normal(size=(20, 1000))
    steady, by_chance = noise.copy(), draw.normal(size=(20, 1000))
    steady[:, :FOUND] += 1
    again = found_again({"base": noise, "tuned": steady}, 0)
    assert (again[:FOUND] == 1).all() and not again[FOUND:].any()
    order = np.argsort(-np.abs(by_chance.mean(0)))[:FOUND]
    assert 0.2 < found_again({"model": by_chance}, 0)[order].mean() < 0.8, "drawn prompts hold most of their noise"
    assert (sought(1000), sought(10**6), sought(4)) == (100, FOUND, 1)
    found = edge_attribution(model(), rows(), steps=1, draws=50)
    assert found.table["found_again"].between(0, 1).all()
    assert found.stability_by_chance < found.stability <= 1 and "found again" in found.summary()
    carrying = int((found.table["present"] == "model").sum())
    assert f", {carrying} of which carry the task; " in found.summary() and "base" not in found.summary()


def test_areas_by_hand() -> None:
    level, above = np.array([[1.0, 1.0]]), np.array([[2.0, 1.0]])
    assert area(level, (0.5, 1.0)) == pytest.approx(0.75) and area(level, (0.5, 1.0), distance=True) == pytest.approx(
        0.25
    )
    assert area(above, (0.5, 1.0)) == pytest.approx(1.25) and area(above, (0.5, 1.0), distance=True) == pytest.approx(
        0.75
    )
    chosen = leading(np.array([[3.0, 9.0], [2.0, 1.0]]), np.array([[True, False], [True, True]]), 0.5)
    assert chosen.tolist() == [[True, False], [True, False]]


def test_what_cannot_be_traced_is_said() -> None:
    with pytest.raises(NotSupported, match="otherwise"):
        edge_attribution(model("neox"), rows())
    same = [
        {**row.columns, "prompt": "the x", "contrast": "the x", "answer": " fox", "distractor": " dog"}
        for row in rows()
    ]
    with pytest.raises(UserError, match="nothing to trace"):
        edge_attribution(model(), same)
    with pytest.raises(UserError, match="contrast"):
        edge_attribution(model(), [{"prompt": "the x", "answer": " fox", "distractor": " dog"}])


def test_prompts_of_one_group_are_one_observation() -> None:
    once, again = rows(6), Prompts.of([row for row in rows(6) for _ in range(3)])
    single, thrice = (
        edge_attribution(model(), some, steps=1, draws=50, curve=True, controls=1) for some in (once, again)
    )
    numbers = ["score", "low", "high", "q", "found_again"]
    assert thrice.table[numbers].to_numpy() == pytest.approx(single.table[numbers].to_numpy(), abs=1e-5)
    assert thrice.areas is not None and single.areas is not None
    ends = ["cpr", "cpr_low", "cpr_high"]
    assert thrice.areas[ends].to_numpy() == pytest.approx(single.areas[ends].to_numpy(), rel=1e-3, abs=1e-4)
