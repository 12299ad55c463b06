"""The examples in ``docs/experiments.md`` and ``examples/``: each is a whole experiment, and the first one runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tunescope.experiments import Experiment, run_experiment
from tunescope.experiments.references import recipes_of
from tunescope.experiments.steps import AnyStep
from tunescope.experiments.sweeping import cells
from tunescope.experiments.yaml_text import read_yaml
from workbench import runs
from workbench.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs" / "experiments.md"
FIRST, PART = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_are_experiments() -> None:
    first = Experiment.parse(FIRST)
    assert len(cells(first)) == 4
    values: dict[str, Any] = read_yaml(FIRST, "docs")
    part = Experiment.of({**values, **read_yaml(PART, "docs")})
    assert Experiment.parse(part.to_yaml()) == part
    assert recipes_of(part.steps["effect"]) == {"all": ("recipes", 0)}
    assert len(cells(Experiment.load(ROOT / "examples" / "experiment.yaml"))) == 4


def test_the_page_names_every_step_and_intervention() -> None:
    from typing import get_args

    from tunescope.experiments.inline import WRITTEN

    text = DOCS.read_text(encoding="utf-8")
    for one in get_args(get_args(AnyStep)[0]):
        assert f"{one.model_fields['do'].default.removeprefix('localize ')}`" in text
    for kind in WRITTEN:
        assert f"`{kind}`" in text
    for name in Experiment.model_fields:
        assert f"`{name}`" in text


def test_the_sentence_about_a_typo_is_the_real_one() -> None:
    with pytest.raises(UserError) as told:
        Experiment.parse(FIRST.replace("effect: {do: diff, ", "effect: {do: diff, metrcs: [kl], "), "experiment.yaml")
    said = str(told.value).partition(" Known:")[0]
    assert said in DOCS.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_first_example_runs(tmp_path: Path) -> None:
    done = run_experiment(Experiment.parse(FIRST), tmp_path / "run")
    assert runs.verify(tmp_path / "run").ok
    effect = done.metrics[(done.metrics["step"] == "effect") & (done.metrics["metric"] == "accuracy")]
    context = effect[effect["of"] == "context"]
    assert (context["change_high"] < 0).all() and (context["control"] > 0.9).all()
    shift = done.metrics[(done.metrics["step"] == "slope") & (done.metrics["strength"] == 0)]
    assert (shift["change"] == 0).all()
