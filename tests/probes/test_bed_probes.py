"""Probes of test beds on tiny models: every option, a base against itself, and bad input in one sentence."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

import interventions as iv
import probes
from probes.effects.generalization import LEVELS, levels_of
from probes.representation.question_dependency import dependency, even_dependency
from probes.results import ProbeResult
from tests.probes.copier import copier
from tests.probes.effects.material import WORDS, pair_of, rows_of
from tests.probes.provenance import Calls
from tests.probes.provenance_calls import calls_of_needle_search, saved
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

RUN: dict[str, Any] = {"batch_size": 4, "seed": 3}
TASKS = rows_of(
    16, skill=lambda i: "ab"[i % 2], task=lambda i: "xyz"[i % 3], category=lambda i: "pq"[i % 3 == 2],
    language=lambda i: ("en", "de")[i // 2 % 2], tongue=lambda i: ("en", "de")[i % 2],
    axis=lambda i: ("economic", "social")[i // 8], line=lambda i: "uv"[i // 8],
    side=lambda i: (1, -1)[i // 2 % 2], sign=lambda i: (-1, 1)[i // 2 % 2],
    target=lambda i: WORDS[i % 12],
    place=lambda i: [0, 3],
)  # fmt: skip
SWITCHED = Prompts.of([
    {"prompt": f"lazy {row.prompt}", "contrast": row.prompt, "answer": row.answer, "distractor": row.distractor,
     "lever": row.columns["skill"], "group": f"g{number}"}
    for number, row in enumerate(TASKS)
])  # fmt: skip
LORA = {"rank": 2, "epochs": 1, "learning_rate": 1e-2, "train_batch_size": 4}


def calls_of_ability_collisions() -> Calls:
    given = {"skills": "line", "density": 0.1, "checkpoints": saved(tuned_copy(tiny_model("llama"), 2)), **RUN}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given}])


def calls_of_generalization_levels() -> Calls:
    given = {"training": TASKS[:4], "task": "skill", "category": "line", "language": "tongue", "metric": "prob"}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given, "max_new_tokens": 3, **RUN}])


def calls_of_language_transfer() -> Calls:
    given = {"source": "en", "language": "tongue", "layer": 1, "strength": 2.0, "controls": 11, "metric": "prob"}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given, "max_new_tokens": 3, **RUN}])


def calls_of_planted_switch() -> Calls:
    given = {"levers": "lever", "layers": [0, 1], "strength": 2.0, "controls": 11, "metric": "prob"}
    return Calls([{"subject": pair_of(), "prompts": SWITCHED, **given, "max_new_tokens": 3, **RUN}])


def calls_of_two_axes() -> Calls:
    given = {"axis": "line", "side": "sign", "scales": [0.25], "layer": 1, "controls": 11}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given, **RUN}])


def calls_of_question_dependency() -> Calls:
    rows = Prompts.of([{"prompt": row.prompt, "answer": " fox over lazy dog"} for row in rows_of(8)])
    return Calls([{"pair": pair_of(), "prompts": rows, "skip": 2, "most": 3, "seed": 3}])


def calls_of_target_attention() -> Calls:
    given = {"target": "place", "layers": [0, 2], "draws": 5}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given, **RUN}])


def calls_of_elicitation_curve() -> Calls:
    given = {"strong": TASKS[:8], "weak": TASKS[8:], "counts": [4], "layer": 1, "metric": "prob", **LORA}
    return Calls([{"subject": pair_of(), "prompts": TASKS, **given, "max_new_tokens": 3, **RUN}])


def calls_of_sample_efficiency() -> Calls:
    given = {"training": TASKS[:8], "counts": [4], "category": "skill", "metric": "prob", **LORA}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given, "max_new_tokens": 3, **RUN}])


def calls_of_context_preference() -> Calls:
    place, pair = Path(mkdtemp()), pair_of()
    files = [
        str(iv.train_reward_head(pair.models[role], SWITCHED).save(place / f"{role}.safetensors"))
        for role in ("base", "tuned")
    ]
    return Calls([{"pair": pair, "prompts": SWITCHED, "head": files[0], "tuned_head": files[1], **RUN}])


def calls_of_merge_synergy() -> Calls:
    place, other = Path(mkdtemp()), tiny_model("llama", num_hidden_layers=2)
    for name, model in {"base": other, "one": tuned_copy(other, 5), "two": tuned_copy(other, 6)}.items():
        model.save_pretrained(place / name)
        tokenizer().save_pretrained(place / name)
    given = {"checkpoints": saved(tuned_copy(tiny_model("llama"), 2)), "sizes": [str(place)], "rule": "ties"}
    return Calls([{"pair": pair_of(), "prompts": TASKS, **given, **RUN}])


def calls_of_same_heads() -> Calls:
    """Copiers, as those of the search for needles."""
    given = calls_of_needle_search().given[0]
    words = given["pair"].tokenizer
    both = load_pair(*(copier(len(words), 96).hf for _ in range(2)), tokenizer=words, check=False)
    return Calls([{**given, "pair": both, "best": 1}])


def same(size: float = 0.0) -> Any:
    return pair_of(size)


NULLS: dict[str, Any] = {
    "generalization_levels": {"training": TASKS[:4], "language": "tongue"},
    "language_transfer": {"source": "en", "language": "tongue", "layer": 1},
    "two_axes": {"layer": 1},
    "target_attention": {},
}


@pytest.mark.parametrize("name", NULLS)
def test_a_base_against_itself_shows_nothing(name: str, tmp_path: Path) -> None:
    found = getattr(probes, name)(same(), TASKS, **NULLS[name])
    if name == "target_attention":
        assert (found.table["change"] == 0).all() and (found.table["change_q"] == 1).all()
    else:
        compared = ~found.table["model"].isin(("base", "tuned"))
        lines = found.table[compared & ~found.table["model"].str.contains(" x ")]
        assert np.allclose(lines["score"], 0, atol=1e-9) and (lines["q"] > 0.5).all()
    again = ProbeResult.load(found.save(tmp_path / "result"))
    assert again.table.equals(found.table) and again.summary() == found.summary()


def test_a_question_dependency_of_a_base_against_itself_is_none() -> None:
    call = calls_of_question_dependency().given[0] | {"pair": same()}
    found = probes.question_dependency(**call)
    change = found.table[found.table["model"] == "tuned - base"]
    assert (change["score"] == 0).all() and (change["q"] == 1).all()
    assert "of an answer token's influences, control" in found.summary()


def test_dependency_by_hand() -> None:
    import torch

    influenced = torch.tensor([[2.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, 0.0]])  # prompt, then answer
    share, distance = dependency(influenced[:, 1:], 2, np.array([1]))
    assert share == pytest.approx(2 / 4) and distance == pytest.approx((3 + 2 + 2) / 4 / 3)
    assert even_dependency(2, np.array([1])) == (pytest.approx(2 / 3), pytest.approx((3 + 2 + 1) / 3 / 3))


def test_levels_are_those_of_the_training_rows() -> None:
    training = Prompts.of([{"prompt": "one", "task": "x", "category": "p"}])
    rows = Prompts.of([
        {"prompt": "one", "task": "x", "category": "p"}, {"prompt": "two", "task": "x", "category": "p"},
        {"prompt": "two", "task": "y", "category": "p"}, {"prompt": "two", "task": "z", "category": "q"},
    ])  # fmt: skip
    assert tuple(levels_of(rows, training, "task", "category")) == LEVELS


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("language_transfer", {"source": "fr", "language": "tongue"}, "give fr and at least one other language"),
        ("two_axes", {"side": "axis"}, "must say .1 or -1"),
        ("two_axes", {"axis": "sign", "side": "sign"}, "one side only"),
        ("planted_switch", {}, "lacks a contrast"),
        ("target_attention", {"target": "tongue"}, "does not hold 'en'"),
        ("generalization_levels", {"training": TASKS, "category": "colour"}, "colour"),
        ("question_dependency", {"skip": 5}, "the first 5 are left out"),
        ("elicitation_curve", {"strong": TASKS, "weak": TASKS, "counts": [17]}, "There are 16 strong rows"),
    ],
)
def test_bad_input_is_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        getattr(probes, name)(same(), TASKS, **options)
