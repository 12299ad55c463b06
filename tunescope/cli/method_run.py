"""A probe called from the command line: a one-step experiment, and the run that keeps its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from tunescope.experiments.method_steps import PREFIX
from tunescope.experiments.requirements import check_pair, check_prompts
from workbench.methods import Method

PROMPTS = "prompts/prompts.jsonl"
"""Inside the run."""
RESULT = "result.safetensors"
EXPERIMENT = "experiment.yaml"
"""The file that makes the result again; its keys keep their order, which those of the manifest do not."""


@dataclass(frozen=True)
class MethodCall:
    """What the command line says."""

    method: Method
    base: str
    tuned: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Path | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    out: Path | None = None
    dry_run: bool = False
    as_json: bool = False

    def experiment(self) -> dict[str, Any]:
        """The one-step experiment that does the same, as plain values."""
        name = self.method.name
        step: dict[str, Any] = {"do": f"{PREFIX}{name}"}
        sets: dict[str, Any] = {}
        if self.prompts is not None:
            sets["prompts"] = {"file": str(self.prompts)}
        for key, value in self.options.items():
            option = self.method.option(key)
            kind = None if option is None else option.kind
            if kind == "prompts":
                sets[key], step[key] = {"file": value}, key
            elif kind == "prompt sets":
                named = _names(value)
                sets |= {named[title]: {"file": file} for title, file in value.items()}
                step[key] = {title: named[title] for title in value}
            else:
                step[key] = value
        loading = {key: value for key, value in (("device", self.device), ("dtype", self.dtype)) if value != "auto"}
        seed = {"seed": self.seed} if self.seed else {}
        pair = {"base": self.base, "tuned": self.tuned, **loading}
        return {"name": name, **seed, "pair": pair, "prompts": sets, "steps": {name: step}}


def run_method(call: MethodCall) -> None:
    """Check, load, compute, write the run and print its table. Nothing is written when the probe refuses."""
    from tunescope.cli.output import emit, progress_bar
    from tunescope.experiments.schema import Experiment

    experiment = Experiment.of(call.experiment(), f"localize {call.method.name}")
    check_pair(call.method, experiment.pair)
    sampled = check_prompts(call.method, experiment, call.limit)
    if call.dry_run:
        _say_cost(call, sampled)
        return
    with progress_bar() as bar:
        result = _result(experiment, call.method, sampled, bar)
    folder = _write(call, experiment, sampled, result)
    emit({"run": str(folder.path), **_plain(result)}, call.as_json, result.frame().head(20),
         title=f"{folder.path}: {result.summary()}")  # fmt: skip


def _names(titles: Mapping[str, Any]) -> dict[str, str]:
    from tunescope.experiments.naming import plain_names

    return plain_names(titles, taken=["prompts"], otherwise="desideratum")


def _result(experiment: Any, method: Method, prompts: Any, bar: Any) -> Any:
    from tunescope.experiments.execute import Bench
    from tunescope.experiments.materials import Materials
    from tunescope.experiments.method_call import call_method

    if method.needs.folders:
        return _of_folders(experiment, method, bar)
    materials = Materials(Path(), bar)
    if prompts is not None:
        materials.hold_prompts(experiment, "prompts", prompts)
    bench = Bench(
        experiment=experiment, spec=experiment.pair, materials=materials, results=_no_step, folder=Path(),
        seed=experiment.seed, progress=bar,
    )  # fmt: skip
    return call_method(experiment.steps[method.name], bench)


def _no_step(name: str) -> Any:
    raise KeyError(name)


def _of_folders(experiment: Any, method: Method, bar: Any) -> Any:
    """From the files alone, or from the loaded pair where they do not tell."""
    from probes.weights.sources import NotInFiles
    from workbench.models.pair import load_pair

    pair, settings = experiment.pair, experiment.steps[method.name].settings()
    try:
        return method.call(pair.base, pair.tuned, **settings, progress=bar)
    except NotInFiles as error:
        typer.echo(f"{error.reason}, so both models are loaded.", err=True)
        return method.call(load_pair(pair.base, pair.tuned, device="cpu"), **settings, progress=bar)


def _write(call: MethodCall, experiment: Any, prompts: Any, result: Any) -> Any:
    """The run: its result, table, figure and prompts, and the experiment that makes it again."""
    from workbench import runs
    from workbench.recording.load_options import load_options

    given = {"base": call.base, "tuned": call.tuned, **({"prompts": str(call.prompts)} if call.prompts else {})}
    loading = load_options({"device": call.device, "dtype": call.dtype})
    config = {
        "verb": f"{PREFIX}{call.method.name}", **given, "seed": call.seed, **loading, "experiment": experiment.plain(),
    }  # fmt: skip
    if call.limit is not None:
        config["limit"] = call.limit
    name = call.method.name
    folder = (
        runs.create(runs.default_home(), kind=name, config=config)
        if call.out is None
        else runs.create_at(call.out.absolute(), kind=name, config=config)
    )
    if folder.is_complete:
        folder.reopen()
    with folder:
        if prompts is not None:
            folder.file("prompts").mkdir(exist_ok=True)
            prompts.save(folder.file(PROMPTS))
            folder.note(pairs={"pair": {"base": call.base, "tuned": call.tuned, "prompts": PROMPTS}})
        result.save(folder.file(RESULT))
        folder.write_table("table", result.frame())
        folder.write_text(EXPERIMENT, _as_kept(experiment).to_yaml())
        folder.write_text("figures/figure.json", result.figure().to_json())
    return folder


def _as_kept(experiment: Any) -> Any:
    """The experiment on the models' whole paths and on the prompts that the run keeps, so that it runs from there."""
    values = experiment.plain()
    for role in ("base", "tuned"):
        path = Path(values["pair"][role]).expanduser()
        values["pair"][role] = str(path.resolve()) if path.exists() else values["pair"][role]
    for name, spec in values.get("prompts", {}).items():
        spec["file"] = PROMPTS if name == "prompts" else str(Path(spec["file"]).expanduser().resolve())
    return type(experiment).of(values)


def _say_cost(call: MethodCall, prompts: Any) -> None:
    from tunescope.cli.output import emit

    rows = None if prompts is None else len(prompts)
    payload = {"method": call.method.name, "prompts": rows, "cost": call.method.cost, "needs": "met"}
    emit(payload, call.as_json, title=f"localize {call.method.name}: nothing was run")


def _plain(result: Any) -> dict[str, Any]:
    import json

    return json.loads(result.to_json())
