"""Gates: a planted direction is found, false alarms are counted, and a gated recipe leaves other prompts alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interventions as iv
from probes.gates.fitting import GateFit, fit_gate
from probes.gates.separation import _area
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

ANIMALS = ("fox", "dog")
REST = ("quick", "brown", "jumps", "over", "lazy", "and")


def model(family: str = "llama") -> AdaptedModel:
    return AdaptedModel(tiny_model(family), tokenizer(), name=family)


def labelled(n: int = 40, seed: int = 0) -> list[dict[str, str]]:
    """Prompts that end in an animal, or in another word."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(n):
        kind = number % 2 == 0
        start = " ".join(draw.choice(REST, size=draw.integers(1, 5)))
        end = draw.choice(ANIMALS if kind else REST)
        made.append({"prompt": f"the {start} {end}", "label": "animal" if kind else "other"})
    return made


def neutral(n: int = 30, seed: int = 1) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["a " + " ".join(draw.choice(REST, size=draw.integers(1, 6))) for _ in range(n)]


def calls_of_fit_gate() -> Calls:
    given = {
        "subject": load_pair(tiny_model("llama"), tiny_model("llama"), tokenizer=tokenizer(), check=False),
        "prompts": Prompts.of(labelled()), "label": "animal", "neutral": Prompts.of(neutral()), "layers": [0, 1],
        "reach": "token",
        "most_false": 0.1, "controls": 3, "draws": 100, "seed": 3,
    }  # fmt: skip
    return Calls([given])


def test_a_planted_kind_of_prompt_is_told_and_neutral_text_is_left_alone(tmp_path: Path) -> None:
    gate = fit_gate(model(), labelled(), neutral=neutral(), label="animal", draws=200)
    assert gate.share("wanted") == 1 and gate.share("neutral") == 0 and gate.share("other") == 0
    best = gate.table.set_index("layer").loc[gate.layer]
    assert best["score"] == 1 and best["q"] < 0.01 and 0.2 < best["control"] < 0.8
    back = GateFit.load(gate.save(tmp_path / "gate"))
    assert back.gate == gate.gate and "opens on" in back.summary()
    assert len(back.figure().data) == 2


def test_labels_that_nothing_follows_are_not_told() -> None:
    rows = labelled()
    shuffled = np.random.default_rng(5).permutation([row["label"] for row in rows])
    dealt = [{**row, "label": str(label)} for row, label in zip(rows, shuffled, strict=True)]
    gate = fit_gate(model(), dealt, neutral=neutral(), label="animal", layers=[1], draws=200)
    row = gate.table.iloc[0]
    assert row["q"] > 0.01 and row["low"] < 0.8 and gate.share("wanted") < 0.5


@pytest.mark.parametrize("reach", ["onward", "token"])
def test_gates_that_read_every_token_count_a_prompt_when_any_token_fires(reach: str) -> None:
    found = fit_gate(model(), labelled(), neutral=neutral(), label="animal", reach=reach, layers=[1], draws=100)
    subject, gate = model(), found.gate
    prompts = [*neutral(), *(row["prompt"] for row in labelled())]
    marked = iv.Recipe([iv.Offset(1, torch.ones(64), strength=1e-3, when=gate)])
    with marked.applied(subject, trace=True) as trace:
        subject.forward(subject.encode(prompts), logits=None)
    opened = set(trace.frame()["row"])
    of_neutral = len([row for row in opened if row < 30]) / 30
    assert gate.reach == reach and of_neutral <= 0.3 and of_neutral == pytest.approx(found.share("neutral"), abs=0.25)


def test_a_gated_recipe_acts_on_wanted_prompts_alone_also_while_generating() -> None:
    subject = model()
    fit = fit_gate(subject, labelled(), neutral=neutral(), label="animal", draws=100)
    vector = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(0))
    recipe = iv.Recipe([iv.Offset(2, vector, strength=20.0, when=fit.gate)])
    prompts = ["the lazy fox", "a lazy brown", "the quick over dog", "quick and over"]
    plain = subject.generate(prompts, max_new_tokens=4)
    with recipe.applied(subject, trace=True) as trace:
        steered = subject.generate(prompts, max_new_tokens=4)
    assert set(trace.frame()["row"]) == {0, 2}, "generated tokens do not count"
    assert [plain[i] for i in (1, 3)] == [steered[i] for i in (1, 3)]
    assert all(plain[i] != steered[i] for i in (0, 2))


def test_a_gate_is_kept_in_the_recipe_file_and_counts_for_equality(tmp_path: Path) -> None:
    gate = iv.Gate(0, torch.arange(64.0), 2.5, fires="below", reach="onward")
    plain = iv.Offset(1, torch.ones(64))
    gated = iv.Recipe([iv.Offset(1, torch.ones(64), when=gate)])
    back = iv.Recipe.load(gated.save(tmp_path / "gated.safetensors"), model())
    assert back == gated and next(iter(back)).when == gate and iv.Recipe([plain]) != gated
    assert "when" not in plain.to_tensors()[0], "recipes without a gate keep the content that they had"


def test_what_cannot_be_gated_is_said() -> None:
    late = iv.Gate(2, torch.ones(64), 0.0)
    with pytest.raises(UserError, match="computed after"):
        iv.Recipe([iv.Offset(1, torch.ones(64), when=late)]).check(model())
    with pytest.raises(UserError, match="does not fit"):
        iv.Recipe([iv.Offset(1, torch.ones(64), when=iv.Gate(0, torch.ones(3), 0.0))]).check(model())
    with pytest.raises(UserError, match="no gate"):
        iv.Offset(1, torch.ones(64), when="always")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="zero vector"):
        iv.Gate(0, torch.zeros(3), 0.0)
    with pytest.raises(UserError, match="reach"):
        iv.Gate(0, torch.ones(3), 0.0, reach="everywhere")
    gated = iv.Recipe([iv.Offset(1, torch.ones(64), when=iv.Gate(0, torch.ones(64), 0.0))])
    with pytest.raises(NotSupported, match="gate"):
        iv.to_gguf(gated, "unused.gguf", model())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a fox", "label": "x"}] * 8, "label"),
        ([{"prompt": f"a fox {i}", "label": "x" if i < 2 else "y"} for i in range(9)], "at least four"),
        (["a fox", "a dog"], "label"),
    ],
)
def test_prompts_that_a_gate_cannot_be_fitted_on_are_refused(rows: list[object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit_gate(model(), rows, neutral=neutral())


def test_prompts_of_one_group_are_one_observation() -> None:
    hits, rest = np.repeat([2.0, 3.0, 4.0], 5), np.repeat([0.0, 1.0, 2.5], 5)
    groups = np.repeat([0, 1, 2], 5)
    alone, p_alone = _area(hits, rest, np.arange(15), np.arange(15, 30), 500, 0)
    grouped, p_grouped = _area(hits, rest, groups, groups + 3, 500, 0)
    assert grouped.estimate == alone.estimate and p_alone < 0.001 < p_grouped == pytest.approx(0.1)
    assert grouped.high - grouped.low > alone.high - alone.low and np.isfinite([grouped.low, grouped.high]).all()
