"""``tunescope localize paths | circuit | cmap | components``: how a behaviour flows from head to head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.cli.localize import Base, Device, Dtype, Json, Layers, Out, PromptFile, Seed, Tuned, finish, loaded
from tunescope.cli.localize import app as app
from tunescope.experiments.head_groups import heads_by_place, parts, place

Heads = Annotated[
    str,
    typer.Option(
        help="Heads by commas, for every position; or by place (last, a number, a column of the prompts): "
        "last=L1H0,L1H1;-2=L0H0."
    ),
]
Position = Annotated[
    str, typer.Option(help="Where: last, a number (-1 is the last token), or a column of the prompts.")
]


@app.command("paths")
def paths(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    receivers: Annotated[str, typer.Option(help="logits, or heads by commas: L1H0,L1H1.")] = "logits",
    through: Annotated[str, typer.Option(help="How receiving heads feel it: q, k or v.")] = "q",
    position: Position = "last",
    metric: Annotated[str, typer.Option(help="prob_ratio or logit_diff.")] = "prob_ratio",
    within: Annotated[
        str, typer.Option(help="tuned or base (prompts need a contrast), or across: tuned heads in the base.")
    ] = "tuned",
    freeze_mlps: Annotated[bool, typer.Option("--freeze-mlps", help="MLPs keep their clean output too.")] = False,
    all_prompts: Annotated[
        bool, typer.Option("--all-prompts", help="Also prompts that are answered wrongly before patching.")
    ] = False,
    layers: Layers = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which heads reach the answer, or the inputs of other heads, directly. Most negative = most important.

    Example: tunescope localize paths ./base ./tuned --prompts p.jsonl --receivers L1H0 --through q
    """
    import probes

    asked = {
        "base": base, "tuned": tuned, "prompts": str(prompts), "receivers": receivers, "through": through,
        "position": position, "metric": metric, "within": within, "freeze_mlps": freeze_mlps,
        "all_prompts": all_prompts, "layers": layers, "seed": seed,
    }  # fmt: skip
    if within not in ("tuned", "base", "across"):
        raise typer.BadParameter(f"{within!r} is not tuned, base or across.", param_hint="--within")

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        runs = {"source": "tuned", "target": "base"} if within == "across" else {}
        return probes.path_patching(
            pair.base if within == "base" else pair, rows,
            receivers if receivers == "logits" else parts(receivers), through, place(position),
            metric=metric, freeze_mlps=freeze_mlps, only_correct=not all_prompts,
            layers=None if layers is None else parts(layers), seed=seed, progress=bar, **runs,
        )  # fmt: skip

    finish("paths", asked, run, out, as_json, device=device, dtype=dtype)


@app.command("circuit")
def circuit(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    heads: Heads,
    metric: Annotated[str, typer.Option(help="accuracy, prob or logit_diff.")] = "accuracy",
    reference: Annotated[
        Path | None, typer.Option(help="Prompts whose mean stands in for the other heads; default: the prompts.")
    ] = None,
    minimality: Annotated[bool, typer.Option("--minimality", help="Also test whether each head is needed.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Whether these heads alone do what the whole model does, in both models, beside random circuits.

    Example: tunescope localize circuit ./base ./tuned --prompts p.jsonl --heads "last=L1H0,L1H1;-2=L0H0"
    """
    import probes

    def run(bar: Any) -> Any:
        from workbench.prompts import Prompts

        groups = heads_by_place(heads)
        means = None if reference is None else Prompts.load(reference)
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        return probes.circuit(
            pair, rows, groups, metric, reference=means, minimality=minimality, seed=seed, progress=bar
        )  # fmt: skip

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "heads": heads, "metric": metric}
    more = {"reference": reference and str(reference), "minimality": minimality, "seed": seed}
    finish("circuit", {**asked, **more}, run, out, as_json, device=device, dtype=dtype)


@app.command("cmap")
def cmap(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    heads: Heads,
    metric: Annotated[str, typer.Option(help="accuracy, prob or logit_diff.")] = "accuracy",
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What these heads of the tuned model do in the base, and the reverse, beside random heads.

    Example: tunescope localize cmap ./base ./tuned --prompts p.jsonl --heads "last=L1H0,L1H1;-2=L0H0"
    """
    import probes

    def run(bar: Any) -> Any:
        groups = heads_by_place(heads)
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        return probes.cmap(pair, rows, groups, metric, seed=seed, progress=bar)

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "heads": heads, "metric": metric, "seed": seed}
    finish("cmap", asked, run, out, as_json, device=device, dtype=dtype)


@app.command("components")
def components(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: Annotated[
        list[Path], typer.Option("--prompts", help="One file per desideratum (prompt, contrast, answer); repeat it.")
    ],
    position: Position = "last",
    heads: Annotated[str | None, typer.Option(help="Heads to choose from, by commas; default: all.")] = None,
    penalties: Annotated[str, typer.Option(help="Prices of a head, by commas.")] = "0.001,0.01,0.1",
    epochs: Annotated[int, typer.Option(help="Passes over the training half.")] = 2,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which heads carry a variable: taken from the contrast, they turn the answer into the one each row asks for.

    Example: tunescope localize components ./base ./tuned --prompts positional.jsonl --prompts object_value.jsonl
    """
    import probes

    def run(bar: Any) -> Any:
        from workbench.models.pair import load_pair
        from workbench.prompts import Prompts

        desiderata = {path.stem: Prompts.load(path) for path in prompts}
        pair = load_pair(base, tuned, device=device, dtype=dtype)
        return probes.component_masking(
            pair, desiderata, place(position), heads=None if heads is None else parts(heads),
            penalties=[_number(part) for part in parts(penalties)], epochs=epochs, seed=seed, progress=bar,
        )  # fmt: skip

    asked = {"base": base, "tuned": tuned, "prompts": [str(path) for path in prompts], "position": position}
    more = {"heads": heads, "penalties": penalties, "epochs": epochs, "seed": seed}
    finish("components", {**asked, **more}, run, out, as_json, device=device, dtype=dtype)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number.", param_hint="--penalties") from None
