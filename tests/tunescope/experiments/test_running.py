"""Running: the numbers of Python calls, each step once per content, resumable after kill -9 to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interventions as iv
import probes
import workbench as wb
from dashboards.report import write_report
from tests.tunescope.experiments.small import SMALL, tree
from tunescope.experiments import Experiment, run_experiment
from tunescope.experiments.references import needs
from workbench import organisms, runs
from workbench.behaviour import behaviour_diff
from workbench.errors import UserError
from workbench.prompts import Prompts

MOE = """
name: small
about: Does switching experts matter?
pair: {base: mixtral-base, tuned: mixtral-tuned, device: cpu}
prompts: {file: p.jsonl, limit: 8}
recipes:
  found: [{kind: ExpertSwitch, off: {from: experts, first: 2}}]
  fixed: [{kind: Offset, layer: 1, vector: {from: rec, layer: 1}}]
steps:
  rec: {do: record, sites: [resid_post]}
  experts: {do: localize experts, target: a}
  effect: {do: diff, recipes: [found, fixed], base_recipes: [fixed], metrics: [accuracy, prob, kl]}
  slope: {do: dose, recipe: fixed, strengths: [0, 1], metrics: [prob, perplexity], on: base, neutral: prompts}
  texts: {do: generate, recipes: [fixed], strengths: [0, 4], max_new_tokens: 2}
sweep:
  seed: [0, 1]
  recipes.found.strength: [0, 1]
"""


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_experiment(Experiment.parse(MOE), tmp_path_factory.mktemp("runs") / "small", folder=home)


def line(metrics: pd.DataFrame, **wanted: Any) -> pd.Series:
    found = metrics
    for name, value in wanted.items():
        found = found[found[name] == value]
    assert len(found) == 1, (wanted, len(found))
    return found.iloc[0]


def test_the_numbers_are_those_of_python_calls(finished: Any, home: Path) -> None:
    pair = wb.load_pair(home / "mixtral-base", home / "mixtral-tuned", device="cpu")
    rows = Prompts.load(home / "p.jsonl")[:8]
    rec = wb.record(pair, rows, ["resid_post"])
    site = "blocks.1.hook_resid_post"
    shift = rec["tuned"][site][:].mean(0) - rec["base"][site][:].mean(0)
    fixed = iv.Recipe([iv.Offset(1, shift)])
    for number, (seed, strength) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        experts = probes.expert_map(pair, rows, target="a", seed=seed)
        found = iv.Recipe([iv.ExpertSwitch(off=experts.ranking(2))]) * float(strength)
        want = behaviour_diff(
            pair, rows, {"found": found, "fixed": fixed}, metrics=["accuracy", "prob", "kl"], seed=seed
        ).table.set_index(["model", "metric"])
        cell = finished.metrics[finished.metrics["cell"] == number]
        for model in ("base", "tuned", "found", "fixed"):
            for metric in ("accuracy", "prob", "kl"):
                got = line(cell, step="effect", of=model, metric=metric)
                for name in ("estimate", "low", "high", "n", "change", "change_low", "change_high"):
                    assert got[name] == want.loc[(model, metric), name], (model, metric, name)
        best = experts.frame().iloc[0]
        top = cell[cell["step"] == "experts"].iloc[0]
        assert (top["estimate"], top["low"], top["high"]) == (best["score"], best["low"], best["high"])
        assert top["of"].startswith(f"L{best['layer']}E{best['expert']}")


def test_the_long_table_names_its_settings_controls_and_intervals(finished: Any) -> None:
    metrics = finished.metrics
    assert list(metrics.columns[:4]) == ["cell", "seed", "recipes.found.strength", "step"]
    assert metrics.groupby("cell").size().nunique() == 1 and metrics["cell"].nunique() == 4
    effect = metrics[metrics["step"] == "effect"]
    assert (effect["low"] <= effect["estimate"]).all() and (effect["estimate"] <= effect["high"]).all()
    assert (effect["n"] == 8).all()
    of_recipes = effect[effect["of"].isin(["found", "fixed", "fixed, in the base"])]
    assert of_recipes["control"].notna().all()
    random = line(effect, cell=0, of="random fixed", metric="prob")
    assert line(effect, cell=0, of="fixed", metric="prob")["control"] == random["estimate"]
    texts = metrics[metrics["step"] == "texts"]
    assert (texts[texts["strength"] == 0]["estimate"] == 0).all() and (
        texts[texts["strength"] == 4]["estimate"] > 0
    ).any()
    slope = metrics[(metrics["step"] == "slope") & (metrics["of"] == "fixed, in the base")]
    assert set(slope["metric"]) == {"prob", "perplexity"} and slope["control"].notna().all()
    slope = slope[slope["strength"] == 0]
    assert (slope["change"] == 0).all()


def test_changes_of_a_recipe_in_the_base_are_from_the_base(finished: Any, home: Path) -> None:
    pair = wb.load_pair(home / "mixtral-base", home / "mixtral-tuned", device="cpu")
    rows = Prompts.load(home / "p.jsonl")[:8]
    rec = wb.record(pair, rows, ["resid_post"])
    site = "blocks.1.hook_resid_post"
    fixed = iv.Recipe([iv.Offset(1, rec["tuned"][site][:].mean(0) - rec["base"][site][:].mean(0))])
    want = behaviour_diff(pair, rows, base_recipes={"f": fixed}, metrics=["prob"])
    got = line(finished.metrics, cell=0, step="effect", of="fixed, in the base", metric="prob")
    assert got["estimate"] == want.value("f", "prob")
    assert got["change"] == pytest.approx(want.value("f", "prob") - want.value("base", "prob"))


def test_a_step_is_done_once_for_all_cells_in_which_it_is_the_same(finished: Any) -> None:
    done = sorted(path.name.rsplit("-", 1)[0] for path in finished.run.file("steps").iterdir())
    assert {name: done.count(name) for name in done} == {
        "rec": 1, "experts": 2, "effect": 4, "slope": 2, "texts": 2,
    }  # fmt: skip
    assert len(list(finished.run.file("cells").iterdir())) == 4


def test_the_run_is_whole_and_its_report_opens(finished: Any, tmp_path: Path) -> None:
    assert finished.run.is_complete and runs.verify(finished.run.path).ok
    page = write_report(finished.run.path, tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Does switching experts matter?", "effect: diff", "slope: dose", "share these results"):
        assert text in page
    assert Experiment.parse(finished.run.file("experiment.yaml").read_text()) == Experiment.parse(MOE)
    texts = finished.run.read_table("tables/texts")
    assert {"prompt", "model", "strength", "text"} <= set(texts) and set(texts["model"]) == {"base", "tuned", "fixed"}


def test_a_finished_run_is_read_again_and_another_experiment_is_refused(finished: Any, home: Path) -> None:
    before = tree(finished.run.path)
    again = run_experiment(Experiment.parse(MOE), finished.run.path, folder=home)
    pd.testing.assert_frame_equal(again.metrics, finished.metrics)
    with pytest.raises(UserError, match=r"holds results of another configuration: 'experiment.seed'"):
        run_experiment(Experiment.parse(f"seed: 3\n{MOE}"), finished.run.path, folder=home)
    assert tree(finished.run.path) == before


def test_a_resumed_run_does_no_finished_step_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second cell: the steps done before are not run again, and the tables are those of one go."""
    from tunescope.experiments import cell_steps

    text = SMALL.replace("  heads: {do: localize heads, metric: prob}\n", "").replace("[0.5, 1, 2, 4]", "[1, 2]")
    real, did = cell_steps.execute, []

    def counting(step: Any, bench: Any) -> Any:
        did.append(step.do)
        if len(did) == 3:
            raise KeyboardInterrupt
        return real(step, bench)

    monkeypatch.setattr(cell_steps, "execute", counting)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment.parse(text), tmp_path / "a", folder=home)
    assert did == ["record", "diff", "diff"]
    run_experiment(Experiment.parse(text), tmp_path / "a", folder=home)
    assert did[3:] == ["diff", "diff", "diff"]
    monkeypatch.setattr(cell_steps, "execute", real)
    run_experiment(Experiment.parse(text), tmp_path / "b", folder=home)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_other_weights_in_mid_way_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunescope.experiments import running

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunescope.experiments.sections.write_sections", stop)
    text = SMALL.replace("sweep:", "#").replace("heads: {do: localize heads, metric: prob}", "")
    for name in ("llama-base", "llama-tuned"):
        (tmp_path / name).symlink_to(home / name)
    (tmp_path / "p.jsonl").write_bytes((home / "p.jsonl").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment.parse(text), tmp_path / "run", folder=tmp_path)
    (tmp_path / "llama-tuned").unlink()
    (tmp_path / "llama-tuned").symlink_to(home / "llama-base")
    with pytest.raises(UserError, match="begun with another tuned model"):
        run_experiment(Experiment.parse(text), tmp_path / "run", folder=tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "the fox", "answer": " dog"}\n')
    with pytest.raises(UserError, match=r"another configuration: 'prompts.prompts'"):
        run_experiment(Experiment.parse(text), tmp_path / "run", folder=tmp_path)
    assert running.KIND == runs.open(tmp_path / "run").manifest.kind


def test_a_base_as_its_own_tuned_model_shows_no_change(home: Path, tmp_path: Path) -> None:
    text = """
    name: nothing
    pair: {base: mixtral-base, tuned: mixtral-base, device: cpu}
    prompts: {file: p.jsonl}
    steps:
      weights: {do: localize weights}
      moved: {do: localize activations}
      experts: {do: localize experts, target: a}
      effect: {do: diff, metrics: [accuracy, prob, kl]}
    """
    metrics = run_experiment(Experiment.parse(text), tmp_path / "run", folder=home).metrics
    effect = metrics[metrics["step"] == "effect"]
    assert len(effect) == 6 and (effect[["change", "change_low", "change_high"]] == 0).all(axis=None)
    assert (effect[effect["metric"] == "kl"]["estimate"] == 0).all()
    for step in ("weights", "moved", "experts"):
        table = metrics[metrics["step"] == step]
        assert not (table["q"] < 0.05).any(), step
        assert not (table["estimate"].abs() > 1e-9).any(), step


def test_a_step_that_is_refused_names_its_cell_and_leaves_nothing_where_nothing_was_done(
    home: Path, tmp_path: Path
) -> None:
    text = (
        SMALL.replace("{from: rec, layer: 1}", "[1, 2]")
        .replace("rec: {do: record}", "")
        .replace("heads: {do: localize heads, metric: prob}", "")
    )
    with pytest.raises(UserError, match=r"cell 0 \(seed=0, push.strength=0.5\), step effect: .*width 2"):
        run_experiment(Experiment.parse(text), tmp_path / "run", folder=home)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"recipe push: .*no readable safetensors"):
        run_experiment(Experiment.parse(text.replace("[1, 2]", "{file: p.jsonl}")), tmp_path / "run", folder=home)
    with pytest.raises(UserError, match=r"none.safetensors, which the experiment names"):
        run_experiment(
            Experiment.parse(text.replace("[1, 2]", "{file: none.safetensors}")), tmp_path / "run", folder=home
        )


@pytest.mark.parametrize(
    ("prompts", "phrase"),
    [
        ("{file: none.jsonl}", "prompts.prompts: .*none.jsonl"),
        ("{file: p.jsonl, where: {lable: a}}", "prompts.prompts: Unknown column 'lable'. Did you mean 'label'"),
        ("{file: p.jsonl, where: {label: c}}", "none of 16 rows is left"),
        ("{file: p.jsonl, skip: 16}", "none of 16 rows is left"),
        ("{file: p.jsonl, answer: anwser}", "prompts.prompts: Unknown column 'anwser'. Did you mean 'answer'"),
        ("{rows: [{prompt: a fox, answer: ' dog', other: 3}], answer: other}", "row 0 has no text in column 'other'"),
    ],
)
def test_prompts_that_are_not_there_are_a_sentence(home: Path, tmp_path: Path, prompts: str, phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        run_experiment(Experiment.parse(SMALL.replace("{file: p.jsonl}", prompts)), tmp_path / "run", folder=home)
    assert not (tmp_path / "run").exists()


def test_a_change_of_models_over_the_grid_loads_each_pair_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.models import pair as loading

    real, loaded = loading.load_pair, []

    def counting(*given: Any, **options: Any) -> Any:
        loaded.append(Path(given[1]).name)
        return real(*given, **options)

    monkeypatch.setattr(loading, "load_pair", counting)
    text = """
    name: both
    pair: {base: llama-base, tuned: llama-tuned, device: cpu}
    prompts: {file: p.jsonl, limit: 4}
    steps: {effect: {do: diff, metrics: [prob]}}
    sweep: {seed: [0, 1], pair.tuned: [llama-base, llama-tuned]}
    """
    metrics = run_experiment(Experiment.parse(text), tmp_path / "run", folder=home).metrics
    assert sorted(loaded) == ["llama-base", "llama-tuned"]
    change = metrics[(metrics["of"] == "base")].set_index("pair.tuned")["change"]
    assert (change["llama-base"] == 0).all() and (change["llama-tuned"] != 0).all()


@pytest.mark.slow
def test_strengths_and_seeds_on_an_organism_are_the_numbers_of_python(tmp_path: Path) -> None:
    """The planted experts of refusal-moe: off, the topic is answered; random experts leave it refused."""
    file = Path(__file__).resolve().parents[3] / "examples" / "experiment.yaml"
    experiment = Experiment.load(file)
    done = run_experiment(experiment, tmp_path / "run", folder=file.parent)
    toy = organisms.build("refusal-moe")
    pair = wb.load_pair(toy.base, toy.tuned)
    asked = Prompts.of([row for row in toy.splits["validation"] if row["topic"] == "topic"])
    train = Prompts.of(toy.splits["train"])
    topics = [row["topic"] for row in toy.splits["train"]]
    for seed in (0, 1):
        used = probes.expert_map(pair, train, topics, "topic", seed=seed)
        for strength in (0, 1):
            recipes = {
                "used": iv.Recipe([iv.ExpertSwitch(off=used.ranking(3))]),
                "planted": iv.Recipe([iv.ExpertSwitch(off=list(toy.truth.experts))]) * float(strength),
            }
            want = behaviour_diff(pair, asked, recipes, metrics=["accuracy", "distracted"], seed=seed)
            cell = done.metrics[(done.metrics["seed"] == seed) & (done.metrics["recipes.planted.strength"] == strength)]
            for row in want.table.to_dict("records"):
                got = line(cell, step="effect", of=row["model"], metric=row["metric"])
                assert [got[k] for k in ("estimate", "low", "high", "change")] == [
                    row[k] for k in ("estimate", "low", "high", "change")
                ]
    off = done.metrics[(done.metrics["of"] == "planted") & (done.metrics["metric"] == "accuracy")]
    assert (off[off["recipes.planted.strength"] == 1]["change"] < -0.5).all()
    assert (off[off["recipes.planted.strength"] == 1]["control"] > 0.8).all()
    assert (off[off["recipes.planted.strength"] == 0]["change"] == 0).all()


def test_other_probes_by_name(home: Path, tmp_path: Path) -> None:
    text = """
    name: others
    pair: {base: llama-base, tuned: llama-tuned, device: cpu}
    prompts: {some: {file: p.jsonl, limit: 8}, alike: {file: p.jsonl, where: {prompt: the quick}}}
    steps:
      tokens: {do: probe, call: token_shift, options: {max_new_tokens: 4}}
      lens: {do: probe, call: logit_lens, options: {top: 2, positions: last}}
      heads: {do: probe, call: cmap, prompts: alike, options: {heads: [L0H0, L1H1], metric: accuracy}}
    """
    done = run_experiment(Experiment.parse(text), tmp_path / "run", folder=home)
    pair = wb.load_pair(home / "llama-base", home / "llama-tuned", device="cpu")
    want = probes.token_shift(pair, Prompts.load(home / "p.jsonl")[:8], max_new_tokens=4)
    assert done.metrics[done.metrics["step"] == "tokens"]["estimate"].iloc[0] == want.frame()["score"].iloc[0]
    assert set(done.metrics["step"]) == {"tokens", "lens", "heads"}
    write_report(done.run.path, tmp_path / "r.html")
    with pytest.raises(UserError, match=r"steps.lens.options.tpo: unknown option 'tpo'. Did you mean 'top'"):
        Experiment.parse(text.replace("top: 2", "tpo: 2"))
    with pytest.raises(UserError, match=r"steps.lens.heads: is missing; add this key"):
        Experiment.parse(text.replace("logit_lens, options: {top: 2, positions: last}", "circuit"))
    with pytest.raises(UserError, match=r"steps.tokens.within: unknown key 'within'"):
        Experiment.parse(text.replace("call: token_shift", "call: token_shift, within: base"))
    with pytest.raises(UserError, match=r"steps.heads.options.hads: unknown option 'hads'"):
        run_experiment(
            Experiment.parse(text.replace("metric: acc", "hads: 3, metric: acc")), tmp_path / "b", folder=home
        )


def test_experts_and_their_switching_by_step(home: Path, tmp_path: Path) -> None:
    text = """
    name: experts
    pair: {base: mixtral-base, tuned: mixtral-tuned, device: cpu}
    prompts: {file: p.jsonl}
    steps:
      both: {do: localize experts, target: a}
      last: {do: localize experts, target: a, within: base, positions: last}
      off: {do: localize switching, begins: FIRST, ranking: {from: both, first: 3}, counts: [1, 3],
            options: {max_new_tokens: 2}}
      on: {do: localize switching, begins: BOTH, ranking: [L0E1], counts: [1], mode: force,
           options: {max_new_tokens: 2}}
    """
    pair = wb.load_pair(home / "mixtral-base", home / "mixtral-tuned", device="cpu")
    rows = Prompts.load(home / "p.jsonl")
    said = pair.tuned.generate(rows, max_new_tokens=2)[0].split()
    text = text.replace("FIRST", said[0]).replace("BOTH", f"{said[0]} nothing")
    done = run_experiment(Experiment.parse(text), tmp_path / "run", folder=home)
    found = {path.parent.name.split("-")[0]: probes.ProbeResult.load(path)
             for path in done.run.path.glob("steps/*/result.safetensors")}  # fmt: skip
    both = probes.expert_map(pair, rows, target="a")
    last = probes.expert_map(pair.base, rows, target="a", exclude=lambda ids: torch.arange(len(ids)) < len(ids) - 1)
    off = probes.switching_curve(
        pair, rows, lambda text, _: text.split()[:1] == said[:1], both.ranking(3), (1, 3), max_new_tokens=2
    )
    for name, want in {"both": both, "last": last, "off": off}.items():
        pd.testing.assert_frame_equal(found[name].frame(), want.frame())
    assert off.values.any() and not found["on"].values.any(), "two words must both be there"
    labels = set(done.metrics[done.metrics["step"] == "off"]["of"])
    assert labels == {"first 0", "first 1", "first 3"}
    assert needs(Experiment.parse(text), "off") == ["both"]


def test_weights_need_no_prompts(home: Path, tmp_path: Path) -> None:
    pair = "pair: {base: llama-base, tuned: llama-tuned, device: cpu}"
    done = run_experiment(
        Experiment.parse(f"name: w\n{pair}\nsteps: {{w: {{do: localize weights}}}}"), tmp_path / "run", folder=home
    )
    assert set(done.metrics["step"]) == {"w"}


def test_a_second_process_in_the_same_folder_is_refused(home: Path, tmp_path: Path) -> None:
    from workbench.folder_lock import FolderLock

    (tmp_path / "run").mkdir()
    text = SMALL.replace("sweep:", "#")
    run_experiment(Experiment.parse(text), tmp_path / "run", folder=home)
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(UserError, match="is writing to"):
        run_experiment(Experiment.parse(text), tmp_path / "run", folder=home)
    lock.release()


def test_everything_in_a_run_is_plain_data(finished: Any) -> None:
    endings = {path.suffix for path in finished.run.path.rglob("*") if path.is_file()}
    assert endings == {".json", ".parquet", ".safetensors", ".yaml"}
    assert json.loads(finished.run.file("sections.json").read_text())[0]["title"] == "small"
    made = finished.run.manifest.provenance
    assert made["versions"]["torch"] == torch.__version__ and set(made["models"][0]) == {"base", "tuned"}
