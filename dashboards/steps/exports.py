"""A recipe for other tools: each format that can hold it is written in the background; the others say why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import jobs, models, panels
from dashboards.job_journal import Order
from dashboards.steps.subject import Subject
from workbench import runs
from workbench.errors import UserError
from workbench.runs.places import default_home

if TYPE_CHECKING:
    from workbench.progress import Progress

FORMATS = {
    "gguf": ("GGUF control vector", "for llama.cpp"),
    "adapter": ("PEFT adapter", "a folder that PEFT loads"),
    "model": ("Model", "a Hugging Face folder with the recipe in its weights"),
    "module": ("Module", "a Python file that hooks it into the Hugging Face model"),
}
"""Format -> its name, and what it is for."""


def place_of(subject: Subject, recipe: str, to: str) -> Path:
    """Where an export of a recipe lies: beside the runs, in a folder of its own."""
    assert subject.run is not None
    name = f"{subject.run.path.name}-{recipe}"
    return default_home() / "exports" / (f"{name}.gguf" if to == "gguf" else f"{name}-{to}")


def show(subject: Subject, file: Path) -> None:
    """The formats of the recipe in ``file``, in a popover."""
    shown = st.popover("Export", icon=":material/ios_share:", key=f"export-{file.stem}", on_change="rerun")
    if not shown.open:
        return
    with shown, panels.errors_shown():
        reasons = _reasons(str(file), file.stat().st_mtime_ns)
        for to, (title, about) in FORMATS.items():
            _show_format(subject, file, to, f"{title}: {about}", reasons[to])


def _show_format(subject: Subject, file: Path, to: str, label: str, reason: str) -> None:
    target, key = place_of(subject, file.stem, to), ("export", str(file), to)
    job = jobs.desk().latest(key)
    busy = job is not None and job.is_active
    pressed = st.button(
        label, key=f"to-{to}-{file.stem}", icon=":material/play_arrow:", disabled=bool(reason) or busy,
        help=panels.visible(reason) or "Written in the background, into the folder exports beside the runs.",
    )  # fmt: skip
    if pressed:
        _begin(subject, file, to, key)
        st.rerun()
    if reason:
        st.caption(panels.words(reason))
    elif busy:
        st.caption("It is at work or in the queue: see above.")
    elif target.is_file():
        st.download_button(
            target.name, target.read_bytes(), file_name=target.name, key=f"exported-{to}-{file.stem}",
            on_click="ignore", icon=":material/download:",
        )  # fmt: skip
    elif target.is_dir():
        st.caption(panels.words(f"Written to {target}."))
    elif job is not None and job.state == "failed":
        st.error(panels.words(job.said), icon=":material/error:")


def _begin(subject: Subject, file: Path, to: str, key: tuple[str, ...]) -> None:
    target = place_of(subject, file.stem, to)

    def task(_progress: Progress) -> str:
        models.warm().wait("models")
        pair = models.pair(subject.base, subject.tuned, dtype=models.quick_dtype(subject.base))
        return str(written(file, pair.tuned, to, target))

    assert subject.run is not None
    order = Order("export", {
        "base": subject.base, "tuned": subject.tuned, "run": str(subject.run.path), "recipe": file.stem, "to": to,
    })  # fmt: skip
    jobs.desk().begin(f"Exporting {file.stem} as {FORMATS[to][0]}", task, key=key, page="look", order=order)


def begin_again(options: dict[str, Any]) -> None:
    """As it was ordered. Raises :class:`UserError` where the run is gone."""
    run = runs.open(options["run"])
    file, to = run.file(f"recipes/{options['recipe']}.safetensors"), str(options["to"])
    _begin(Subject(options["base"], options["tuned"], run), file, to, ("export", str(file), to))


def written(file: Path, model: object, to: str, target: Path) -> Path:
    """Write the recipe in ``file`` in a format, for ``model``; one that was written before gives way.

    Raises:
        UserError: The model cannot hold it in that format.
    """
    import shutil

    from interventions.exchange.adapter import to_adapter
    from interventions.exchange.bake import bake
    from interventions.exchange.control_vectors import to_gguf
    from interventions.exchange.module import to_module
    from interventions.exchange.reading import load_recipe

    recipe = load_recipe(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    if to == "gguf":
        return to_gguf(recipe, target, model)
    if target.is_dir():
        shutil.rmtree(target)
    writers = {"model": bake, "module": to_module}
    return writers.get(to, to_adapter)(model, recipe, target)


def _reasons_of(file: str, changed: int) -> dict[str, str]:  # noqa: ARG001 (part of the cache's key)
    models.warm().wait("models")
    from interventions.exchange.formats import reason_against
    from interventions.exchange.reading import load_recipe

    try:
        recipe = load_recipe(Path(file))
    except UserError as error:
        return dict.fromkeys(FORMATS, str(error))
    return {to: reason_against(recipe, to) for to in FORMATS}


_reasons = st.cache_data(max_entries=64, show_spinner=False)(_reasons_of)
