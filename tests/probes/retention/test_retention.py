"""Erased or displaced, formats, phrasings, examples: planted answers, and a base against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interventions as iv
import probes
from interventions.training.soft_prompt import unused_token
from probes.effects.answers import answer_scores
from probes.effects.panel import table_of
from probes.effects.rewriting import next_turn, with_demonstrations
from probes.results import ProbeResult
from probes.retention.codes import CODES
from probes.retention.erasure import cross_fitted, erasure_lines, verdict_of
from probes.retention.formats import Format, all_formats, atomic_edits, sampled_formats, search_extremes
from probes.retention.inherent_limits import correlation
from probes.retention.many_shot import exchanged_answers
from probes.retention.phrasings import _Items, phrasing_lines
from probes.retention.soft_prompt_split import carried, split_lines
from tests.probes.effects.material import pair_of, rows_of
from tests.probes.provenance import Calls
from tests.tiny import tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

RUN: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 4, "seed": 3}
TASKS = rows_of(12, task=lambda i: "abc"[i % 3], passage=lambda i: f"p {'abcdefghijkl'[i]}")
PHRASES = rows_of(16, item=lambda i: f"i{i // 4}", phrasing=lambda i: ("observed", "unobserved")[i % 2])


def chat_pair(size: float = 0.1) -> ModelPair:
    made = pair_of(size)
    words = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, pad_token="<pad>", bos_token="<bos>",
                                  eos_token="<eos>", unk_token="<unk>")  # fmt: skip
    words.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    base = made.base.hf if made.adapter is None else made.adapter.get_base_model()
    return load_pair(base, made.tuned.hf, tokenizer=words, check=False)


def calls_of_many_shot_curve() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": rows_of(6), "shots": [0, 2], "metric": "prob", **RUN}])


def calls_of_inherent_limits() -> Calls:
    rows = rows_of(12, skill=lambda i: "abc"[i % 3])
    return Calls([{"pair": pair_of(), "prompts": rows, "tasks": "skill", "shots": 2, "metric": "prob", **RUN}])


def calls_of_soft_prompt_split() -> Calls:
    from tempfile import mkdtemp

    folder = Path(mkdtemp()) / "one"
    pair_of(0.02).tuned.hf.save_pretrained(folder)
    given = {"others": rows_of(4), "shots": 1, "tokens": 2, "epochs": 1, "learning_rate": 0.02, "metric": "prob"}
    return Calls([{"pair": pair_of(), "prompts": rows_of(8), "checkpoints": [str(folder)], **given, **RUN}])


def calls_of_erased_or_displaced() -> Calls:
    given = {
        "shots": 1,
        "bank": ["a {question}"],
        "codes": ["rot13"],
        "soft_tokens": 1,
        "margin": 0.2,
        "metric": "prob",
    }
    return Calls([{"pair": pair_of(), "prompts": rows_of(8), **given, **RUN}])


def calls_of_format_spread() -> Calls:
    given = {"formats": 3, "budget": 20, "batch": 2, "shots": 1, "atomic": True, "separability": True, "metric": "prob"}
    return Calls([{"pair": pair_of(), "prompts": rows_of(8), **given, **RUN}])


def calls_of_phrasing_robustness() -> Calls:
    rows = rows_of(16, thing=lambda i: f"i{i // 4}", words=lambda i: i % 2 == 0)
    given = {"items": "thing", "phrasing": "words", "layer": 1, "prefix_tokens": 1, "epochs": 1, "metric": "prob"}
    return Calls([{"pair": pair_of(), "prompts": rows, **given, **RUN}])


def calls_of_template_effect() -> Calls:
    return Calls([{"pair": chat_pair(), "prompts": TASKS[:6], "context": "passage", "metric": "prob", **RUN}])


def calls_of_position_effect() -> Calls:
    given = {"context": "passage", "among": 3, "places": 2, "metric": "prob"}
    return Calls([{"pair": pair_of(), "prompts": TASKS[:6], **given, **RUN}])


NULLS: dict[str, Any] = {
    "many_shot_curve": lambda pair: probes.many_shot_curve(pair, rows_of(6), shots=[0, 2], metric="prob"),
    "soft_prompt_split": lambda pair: probes.soft_prompt_split(pair, rows_of(8), tokens=1, epochs=1, metric="prob"),
    "erased_or_displaced": lambda pair: probes.erased_or_displaced(
        pair, rows_of(12), shots=1, codes=["rot13"], metric="prob", margin=1e-6
    ),
    "format_spread": lambda pair: probes.format_spread(pair, rows_of(8), formats=3, budget=12, batch=2, metric="prob"),
    "phrasing_robustness": lambda pair: probes.phrasing_robustness(pair, PHRASES, metric="prob"),
    "position_effect": lambda pair: probes.position_effect(pair, TASKS, context="passage", metric="prob"),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_base_against_itself_shows_nothing(name: str, tmp_path: Path) -> None:
    found = NULLS[name](pair_of(0))
    change = found.table[found.table["model"].isin(["tuned - base", "base - tuned"])]
    assert (change["score"].abs() < 1e-6).all() and (change["q"] > 0.05).all()
    assert found.figure().data and found.summary()
    again = ProbeResult.load(found.save(tmp_path / "panel"))
    assert again.frame().equals(found.frame())
    if name == "erased_or_displaced":
        assert found.outcome == "kept" and (found.states["tuned, plain"] == 0).all()


def test_template_effect_of_a_base_against_itself() -> None:
    found = probes.template_effect(chat_pair(0), TASKS[:6], metric="prob")
    assert (found.table[found.table["model"] == "tuned - base"]["score"] == 0).all()
    assert found.line("on", "base")["score"] != found.line("off", "base")["score"]
    with pytest.raises(UserError, match="no chat template"):
        probes.template_effect(pair_of(), TASKS)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("text", ["where is the brown fox", "Rhythm, well-known: yes?\nno", "a"])
def test_codes_come_back(name: str, text: str) -> None:
    code = CODES[name]
    assert code.there(text) != text or len(text) == 1
    back = code.back(code.there(text))
    assert back == (text.lower() if name == "leetspeak" else text)


def test_examples_are_of_other_groups_and_turns_for_chats() -> None:
    rows = rows_of(6, group=lambda i: f"g{i // 2}")
    for row, shown in zip(rows, with_demonstrations(rows, rows, 2, 0), strict=True):
        before, own = (shown.prompt or "").rsplit("\n\n", 1)
        assert own == row.prompt
        assert all(other.prompt not in before for other in rows if other.group == row.group)
    chat = Prompts.of([{"messages": [{"role": "user", "content": one}], "answer": "y"} for one in "abc"])
    turns = with_demonstrations(chat, chat, 1, 0)[0].messages or ()
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"] and turns[-1]["content"] == "a"
    assert [turn["content"] for turn in next_turn(chat[0], "r", "sure?").messages or ()] == ["a", "r", "sure?"]
    assert all(a != row.answer or True for a, row in zip(exchanged_answers(rows, 0), rows, strict=True))
    assert sorted(exchanged_answers(rows, 0)) == sorted(str(row.answer) for row in rows)
    with pytest.raises(UserError, match="other rows are there"):
        with_demonstrations(rows, rows, 5, 0)


def scores_of(tuned: dict[str, np.ndarray], n: int = 40) -> dict[str, dict[str, np.ndarray]]:
    return {"base": dict.fromkeys(tuned, np.ones(n)), "tuned": tuned}


@pytest.mark.parametrize(
    ("plain", "by_route", "outcome"),
    [(1.0, 1.0, "kept"), (0.0, 1.0, "displaced"), (0.0, 0.0, "lost"), (0.0, 0.5, "partly displaced")],
)
def test_verdicts_of_planted_scores(plain: float, by_route: float, outcome: str) -> None:
    n = 40
    route = (np.arange(n) % 2 < by_route * 2).astype(float) if by_route == 0.5 else np.full(n, by_route)
    scores = scores_of({"plain": np.full(n, plain), "rot13": np.zeros(n), "examples": route})
    inside = np.arange(n) % 4 < 2
    table = table_of(erasure_lines(scores, inside, np.arange(n), 0)).set_index("group")
    assert verdict_of(table, 0.1) == outcome
    assert (cross_fitted(scores, inside)["tuned"] == np.maximum(route, 0)).all()


def test_a_base_that_knew_nothing_has_lost_nothing_and_kept_nothing() -> None:
    scores = {role: {"plain": np.zeros(40), "examples": np.zeros(40)} for role in ("base", "tuned")}
    table = table_of(erasure_lines(scores, np.arange(40) % 4 < 2, np.arange(40), 0)).set_index("group")
    assert verdict_of(table, 0.1) == "undecided"


def test_the_bandit_finds_the_planted_formats() -> None:
    hits = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        rights = np.full(12, 0.5)
        rights[3], rights[7] = 0.95, 0.05
        scores = random.random((12, 200)) < rights[:, None]
        found = search_extremes(lambda arm, rows, s=scores: s[arm, rows].astype(float), 12, 200, budget=600, batch=10,
                                seed=seed)  # fmt: skip
        hits += found.best == 3 and found.worst == 7
        assert found.tried.sum() <= 600 + 20
    assert hits >= 39


def test_formats_are_a_grammar() -> None:
    assert Format().write("why?") == "Question: why?\nAnswer:"
    assert (
        len({sampled_format.name for sampled_format in sampled_formats(30, 0)}) == 30
        and len(all_formats()) == 4 * 3 * 7 * 6
    )
    edits = atomic_edits(Format())
    assert len(edits) == 3 + 2 + 6 + 5 and all(form != Format() for _, form in edits)
    with pytest.raises(UserError, match="cannot be drawn"):
        sampled_formats(1, 0)


def test_tuned_scores_that_follow_few_shot_scores_correlate() -> None:
    of = np.repeat(np.arange(6).astype(str), 30)
    random = np.random.default_rng(0)
    level = np.repeat(np.linspace(0.05, 0.95, 6), 30)
    drawn = [(random.random(180) < level).astype(float) for _ in range(2)]
    scores = {"tuned": drawn[0], "base_few_shot": drawn[1], "base_zero_shot": np.zeros(180)}
    found = correlation(scores, of, [str(n) for n in range(6)], 0)
    assert found["rho"] > 0.9 and found["p"] < 0.02 and found["control"] == 0
    with pytest.raises(UserError, match="three or more tasks"):
        probes.inherent_limits(pair_of(), rows_of(4, task=lambda i: "ab"[i % 2]))


def test_inherent_limits_against_the_base_itself() -> None:
    found = probes.inherent_limits(pair_of(0), TASKS, shots=1, metric="prob")
    assert np.allclose(found.table["tuned"], found.table["base_zero_shot"])
    assert np.allclose(found.table["score"], found.table["control"]) and found.figure().data and found.summary()


def test_phrasings_far_away_that_do_worse_are_told() -> None:
    table = _Items.from_values([f"i{n // 4}" for n in range(40)], [n % 2 == 0 for n in range(40)])
    states = np.tile([[1.0, 0], [1.0, 3.0]], (20, 1)) + 0.01 * np.random.default_rng(0).standard_normal((40, 2))
    score = np.tile([1.0, 0.0], 20)
    own = table.measured(score, states)
    values = {f"{role}, {name}": one for role in ("base", "tuned") for name, one in own.items()}
    lines = table_of(phrasing_lines(values, 0)).set_index(["group", "model"])
    assert lines.loc[("unobserved - observed", "tuned"), "score"] == -1
    assert lines.loc[("distance", "tuned"), "score"] == pytest.approx(3, rel=0.1)
    assert lines.loc[("distance", "tuned"), "control"] < 0.1 and lines.loc[("distance", "tuned"), "p"] < 0.01
    with pytest.raises(UserError, match="two or more that have both"):
        _Items.from_values(["a", "b"], [True, False])


def test_a_soft_prompt_learns_the_task_and_leaves_nothing() -> None:
    pair = pair_of()
    rows = rows_of(8)
    before = pair.base.forward(pair.base.encode(rows))
    soft = iv.train_soft_prompt(pair.base, rows, tokens=4, schedule=iv.Schedule(epochs=15, learning_rate=0.1))
    read = soft.before(rows, pair.tokenizer)
    with_it = answer_scores(pair.base, read, "answer", recipe=soft)
    assert with_it.mean() > answer_scores(pair.base, rows, "answer").mean() + 1
    assert soft.history[-1]["loss"] < soft.history[0]["loss"] / 2
    embedding = pair.base.inner.get_input_embeddings()
    assert not embedding._forward_hooks and torch.equal(pair.base.forward(pair.base.encode(rows)), before)
    with soft.applied(pair.base):  # rows without placeholders pass as they are
        assert torch.equal(pair.base.forward(pair.base.encode(rows)), before)
    singles = [pair.base.forward(pair.base.encode(read[[n]]), logits="last") for n in range(3)]
    with soft.applied(pair.base):
        batch = pair.base.forward(pair.base.encode(read[[0, 1, 2]]), logits="last")
        alone = [pair.base.forward(pair.base.encode(read[[n]]), logits="last") for n in range(3)]
    assert torch.allclose(torch.cat(alone), batch, atol=1e-4) and not torch.allclose(torch.cat(singles), batch)
    assert unused_token(pair.base, read) != soft.placeholder
    with pytest.raises(UserError, match="is none"):
        iv.train_soft_prompt(pair.base, rows, tokens=0)


def test_what_soft_prompt_and_weights_both_learnt_shows_as_interaction() -> None:
    n = 30
    scores = {("base", "off", "task"): np.zeros(n), ("base", "on", "task"): np.ones(n),
              ("tuned", "off", "task"): np.ones(n), ("tuned", "on", "task"): np.ones(n)}  # fmt: skip
    scores |= {(weights, "random", "task"): scores[weights, "off", "task"] for weights in ("base", "tuned")}
    table = table_of(split_lines(scores, {"task": np.arange(n)}, 0)).set_index(["group", "model"])
    assert table.loc[("task, interaction", "tuned - base"), "score"] == -1
    assert table.loc[("task, soft prompt's gain", "base"), "p"] < 0.01
    assert table.loc[("task, soft prompt's gain", "tuned"), "score"] == 0
    assert carried(table.reset_index(), ["task"], "accuracy").startswith("change of accuracy: task: tuning +1 [")
