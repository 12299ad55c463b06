"""``tunescope localize``: one verb per question, each writing a run: the result, its table and its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Find where the change lives. Each verb writes a run.")

Base = Annotated[str, typer.Argument(help="The base model: a folder or a hub id.")]
Tuned = Annotated[str, typer.Argument(help="The fine-tuned model, or a PEFT adapter of the base.")]
PromptFile = Annotated[Path, typer.Option("--prompts", help="Prompts: .jsonl, .json, .csv, .parquet or .txt.")]
Layers = Annotated[str | None, typer.Option(help="Layers, by commas: indices or fractions of depth.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in ./runs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Seed = Annotated[int, typer.Option(help="Seed of splits, draws and intervals.")]
Json = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]
KEPT_PROMPTS = "prompts/prompts.jsonl"
"""Inside the run."""


@app.command("weights")
def weights(base: Base, tuned: Tuned, out: Out = None, as_json: Json = False) -> None:
    """Where the weights changed: by module, layer, head and expert. Loads neither model where their files tell.

    Example: tunescope localize weights ./base ./tuned
    """
    import probes
    from probes.weights.sources import NotInFiles

    def run(bar: Any) -> Any:
        try:
            return probes.weight_delta(base, tuned, progress=bar)
        except NotInFiles as told:
            from workbench.models.pair import load_pair

            typer.echo(f"{told.reason}, so both models are loaded.", err=True)
            return probes.weight_delta(load_pair(base, tuned, device="cpu"), progress=bar)

    finish("weights", {"base": base, "tuned": tuned}, run, out, as_json)


@app.command("activations")
def activations(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    sites: Annotated[str, typer.Option(help="Sites, by commas.")] = "resid_post,z",
    positions: Annotated[str, typer.Option(help="Which tokens: last, all, prompt, …")] = "last",
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """How far the activations moved at each site, with intervals over prompts.

    Example: tunescope localize activations ./base ./tuned --prompts p.jsonl --sites resid_post,z
    """
    import probes
    from workbench.recording.record_pair import record

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        rec = record(pair, rows, [name.strip() for name in sites.split(",")], positions=positions, progress=bar)
        return probes.activation_delta(rec, model=pair.tuned, seed=seed)

    asked = {
        "base": base,
        "tuned": tuned,
        "prompts": str(prompts),
        "sites": sites,
        "positions": positions,
        "seed": seed,
    }
    finish("activations", asked, run, out, as_json, device=device, dtype=dtype)


@app.command("heads")
def heads(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    what: Annotated[str, typer.Option(help="Patch a head as z, or as its write W_O z.")] = "write",
    metric: Annotated[str, typer.Option(help="logit_diff, prob or kl.")] = "logit_diff",
    layers: Layers = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which heads carry the change: each head of the tuned model patched into the base, exactly.

    Prompts need an answer, and a distractor for logit_diff.
    Example: tunescope localize heads ./base ./tuned --prompts p.jsonl
    """
    import probes

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        chosen = None if layers is None else [part.strip() for part in layers.split(",")]
        options = {} if chosen is None else {"layers": chosen}
        return probes.patching(pair, rows, "heads", what=what, metric=metric, seed=seed, progress=bar, **options)

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "what": what, "metric": metric, "seed": seed}
    finish("heads", {**asked, "layers": layers}, run, out, as_json, device=device, dtype=dtype)


@app.command("skills")
def skills(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    method: Annotated[str, typer.Option(help="optimised, adaptive, movement or first_order.")] = "optimised",
    level: Annotated[str, typer.Option(help="entries, rows, heads, modules or ranks.")] = "entries",
    sparsity: Annotated[float, typer.Option(help="Share of weights to start from.")] = 1e-3,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which weights of the tuned model, put into the base, carry the task.

    Example: tunescope localize skills ./base ./tuned --prompts p.jsonl --level modules
    """
    import probes

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        return probes.graft(pair, rows, method=method, level=level, sparsity=sparsity, seed=seed, progress=bar)

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "method": method, "level": level}
    finish("skills", {**asked, "sparsity": sparsity, "seed": seed}, run, out, as_json, device=device, dtype=dtype)


@app.command("experts")
def experts(
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    target: Annotated[str | None, typer.Option(help="The label of the behaviour; prompts need a label.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which experts the tuned model uses more for one class of behaviour than for the others.

    Example: tunescope localize experts ./base ./tuned --prompts p.jsonl --target refuse
    """
    import probes

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        return probes.expert_map(pair, rows, target=target, seed=seed, progress=bar)

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "target": target, "seed": seed}
    finish("experts", asked, run, out, as_json, device=device, dtype=dtype)


@app.command("knob")
def knob(
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    layers: Annotated[str, typer.Option(help="search, all, or layers by commas.")] = "search",
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The direction whose coordinate decides between two intents. Prompts need group, intent and answer.

    Example: tunescope localize knob ./base ./tuned --prompts p.jsonl
    """
    import probes

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        chosen: Any = layers if layers in ("search", "all") else [_layer(part) for part in layers.split(",")]
        return probes.find_knob(pair, rows, layers=chosen, seed=seed, progress=bar)

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "layers": layers, "seed": seed}
    finish("knob", asked, run, out, as_json, device=device, dtype=dtype)


@app.command("concepts")
def concepts(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    prompts: PromptFile,
    layer: Annotated[str, typer.Option(help="One layer: an index or a fraction of depth.")] = "0.5",
    method: Annotated[
        str, typer.Option(help="mean, pca, pca-uncentred, labels-mean, labels-probe, or sae.")
    ] = "pca-uncentred",
    dictionary: Annotated[Path | None, typer.Option(help="A SAELens folder, for sae.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Directions that tuning moved, each with the contexts and the words it stands for, to be named before ablating.

    Example: tunescope localize concepts ./base ./tuned --prompts p.jsonl --layer 0.5
    """
    import probes
    from workbench.recording.record_pair import record

    def run(bar: Any) -> Any:
        pair, rows = loaded(base, tuned, prompts, device, dtype)
        rec = record(pair, rows, "resid_post", layers=[_layer(layer)], positions="all", progress=bar)
        return probes.concept_directions(rec, method, dictionary=dictionary, model=pair.tuned, seed=seed)

    asked = {"base": base, "tuned": tuned, "prompts": str(prompts), "layer": layer, "method": method, "seed": seed}
    finish(
        "concepts",
        {**asked, "dictionary": dictionary and str(dictionary)},
        run,
        out,
        as_json,
        device=device,
        dtype=dtype,
    )


@app.command("retrieval")
def retrieval(  # noqa: PLR0913 (one parameter per option)
    base: Base,
    tuned: Tuned,
    haystack: Annotated[Path, typer.Option(help="A text file to hide the needles in.")],
    needles: Annotated[Path, typer.Option(help="JSONL rows with question and text.")],
    lengths: Annotated[str, typer.Option(help="Tokens of haystack, by commas.")] = "256,512,1024",
    template: Annotated[
        str | None,
        typer.Option(
            help=r"The text after the haystack, with {question} where the question goes and \n for a line break; "
            "default: Based on the content of the text, Question: {question} Answer:"
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which heads of both models copy a needle from the context into the answer.

    Example: tunescope localize retrieval ./base ./tuned --haystack book.txt --needles needles.jsonl --lengths 128,256
    """
    import probes

    sizes = _counts(lengths)
    asked = {"base": base, "tuned": tuned, "haystack": str(haystack), "needles": str(needles), "lengths": lengths}
    behind = {} if template is None else {"template": template.replace("\\n", "\n")}

    def run(bar: Any) -> Any:
        from probes.needles.trials import check_template
        from workbench.models.pair import load_pair

        if behind:
            check_template(behind["template"])
        hidden, text = _needles(needles), _text(haystack)
        pair = load_pair(base, tuned, device=device, dtype=dtype)
        trials = probes.needle_trials(text, hidden, pair.tokenizer, lengths=sizes, **behind)
        return probes.retrieval_heads(pair, trials, seed=seed, progress=bar)

    finish("retrieval", {**asked, **behind, "seed": seed}, run, out, as_json, device=device, dtype=dtype)


def _needles(path: Path) -> list[Any]:
    import json

    import probes
    from workbench.errors import UserError

    found = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, text = row["question"], row["text"]
        except (ValueError, KeyError, TypeError):
            question = text = None
        if not (isinstance(question, str) and isinstance(text, str)):
            raise UserError(f"{path}, line {number} is no needle: give an object with question and text.")
        found.append(probes.Needle(question=question, text=text))
    if not found:
        raise UserError(f"{path} holds no needles: give one object with question and text per line.")
    return found


def _text(path: Path) -> str:
    from workbench.errors import UserError

    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def _counts(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers, such as 256,512.", param_hint="--lengths")
    return found


def _layer(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no layer.", param_hint="--layers") from None


def loaded(base: str, tuned: str, prompts: Path, device: str, dtype: str) -> tuple[Any, Any]:
    from workbench.models.pair import load_pair
    from workbench.prompts import Prompts

    rows = Prompts.load(prompts)  # the cheaper of the two to be wrong about
    return load_pair(base, tuned, device=device, dtype=dtype), rows


def finish(
    verb: str, asked: dict[str, Any], run: Callable[[Any], Any], out: Path | None, as_json: bool, **loading: str
) -> None:
    """Run a probe, write its run, print its table. Nothing is written when the probe refuses.

    ``loading``: options of :func:`workbench.load_pair`; the run keeps those that are not the default.
    """
    from tunescope.cli.output import emit, progress_bar
    from workbench import runs
    from workbench.recording.load_options import load_options

    with progress_bar() as bar:
        result = run(bar)
    config = {"verb": f"localize {verb}", **asked, **load_options(loading)}
    where = out.absolute() if out is not None else None
    folder = (
        runs.create_at(where, kind=verb, config=config)
        if where is not None
        else runs.create(runs.default_home(), kind=verb, config=config)
    )
    if folder.is_complete:
        folder.reopen()
    with folder:
        _keep_prompts(folder, asked)
        result.save(folder.file("result.safetensors"))
        table = result.frame()
        folder.write_table("table", table)
        folder.write_text("figures/figure.json", result.figure().to_json())
    payload = {"run": str(folder.path), **_plain(result)}
    emit(payload, as_json, table.head(20), title=f"{folder.path}: {result.summary()}")


def _keep_prompts(folder: Any, asked: dict[str, Any]) -> None:
    """The prompts and whose they are, so that the run can be looked at, steered from and made again."""
    from workbench.prompts import Prompts

    file = asked.get("prompts")
    if not isinstance(file, str):
        return
    folder.file("prompts").mkdir(exist_ok=True)
    Prompts.load(file).save(folder.file(KEPT_PROMPTS))
    folder.note(pairs={"pair": {"base": asked["base"], "tuned": asked["tuned"], "prompts": KEPT_PROMPTS}})


def _plain(result: Any) -> dict[str, Any]:
    import json

    return json.loads(result.to_json())
