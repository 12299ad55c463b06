"""Keep it: recipes, report, experiment, and the commands that do the same."""

from __future__ import annotations

import shlex
from pathlib import Path

import streamlit as st

from dashboards import panels
from dashboards.steps import exports
from dashboards.steps.as_notebook import look_notebook
from dashboards.steps.subject import Subject
from dashboards.steps.turn import parts_of
from tunescope.look.notes import CHANGED
from workbench.runs.places import PROMPTS


def show(subject: Subject) -> None:
    """What there is to take away."""
    if subject.run is None or subject.notes.state(CHANGED) == "not run":
        st.info("There is nothing to keep yet: run the steps before.", icon=":material/info:")
        return
    with st.container(key="kept"):
        left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Recipes")
        _show_recipes(subject)
        st.subheader("Report")
        _show_report(subject.run.path)
    with right:
        st.subheader("The same from a terminal")
        st.code("\n".join(commands(subject)), language="bash", wrap_lines=True)
        _show_experiment(subject)
        st.download_button(
            "Notebook", lambda: look_notebook(subject), file_name="look.ipynb", mime="application/x-ipynb+json",
            key="look-notebook", on_click="ignore", icon=":material/book_2:",
            help="The pair, what the steps found, and the best recipe, as cells that run.",
        )  # fmt: skip


def commands(subject: Subject) -> list[str]:
    """Command lines that make the look again, steer with its best recipe, and write its report."""
    assert subject.run is not None
    run, models = subject.run, [subject.base, subject.tuned]
    config = run.config
    look = ["tunescope", "look", *models, "--prompts", str(run.file(PROMPTS)), "--limit", str(config.get("limit", 60))]
    exact = ["--exact"] if config.get("exact") else []
    lines = [shlex.join([*look, *exact, "--seed", str(config.get("seed", 0))])]
    table = subject.table("candidates")
    files = [] if table is None else [name for name, (_, side) in parts_of(subject, table).items() if side == "tuned"]
    for name in files[:1]:
        recipe = str(run.path / "recipes" / f"{name}.safetensors")
        lines.append(
            shlex.join(["tunescope", "steer", models[0], "--tuned", models[1], "--recipe", recipe, "--prompt", "..."])
        )
    return [panels.visible(line) for line in [*lines, shlex.join(["tunescope", "report", str(run.path)])]]


def _show_recipes(subject: Subject) -> None:
    assert subject.run is not None
    table = subject.table("candidates")
    best_first = [] if table is None else table["candidate"].tolist()
    files = sorted(
        (subject.run.path / "recipes").glob("[!.]*.safetensors"),
        key=lambda file: (best_first.index(file.stem) if file.stem in best_first else len(best_first), file.stem),
    )
    if not files:
        st.caption("No recipe was made; step 3 makes them.")
    for file in files:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.download_button(
                file.stem, file.read_bytes(), file_name=file.name, key=f"recipe-{file.stem}", on_click="ignore",
                icon=":material/download:",
            )  # fmt: skip
            st.page_link(
                "app_pages/steer.py", label=f"Steer with {file.stem}", icon=":material/play_circle:",
                query_params={"recipe": file.stem},
            )  # fmt: skip
            exports.show(subject, file)
    _show_scaled(subject)


def _show_scaled(subject: Subject) -> None:
    """How the best share of a tuning of whole weights becomes a model: no recipe holds it, it is as large as one."""
    table = subject.table("candidates")
    parts = {} if table is None else parts_of(subject, table)
    best = next(iter(parts), None)
    scale = subject.notes.candidates.get(best or "", {}).get("scale")
    if best is None or parts[best][1] != "base" or scale in (None, 0.0):
        return
    st.caption(panels.words(f"{best}, the best in step 3, is as large as the model. This writes it as one:"))
    st.code(scaled_model(subject.base, subject.tuned, float(scale)), language="python", wrap_lines=True)


def scaled_model(base: str, tuned: str, scale: float) -> str:
    """Python that writes the base with a share of the tuning as a model of its own."""
    return (
        "import workbench as wb\nimport interventions as iv\n\n"
        f"pair = wb.load_pair({base!r}, {tuned!r})\n"
        f"(iv.TaskVector.from_pair(pair) * {scale:g}).save(pair.base, 'scaled')\n"
        "pair.tokenizer.save_pretrained('scaled')"
    )


def _show_report(folder: Path) -> None:
    st.caption("One HTML file with the four steps, figures and tables. It opens offline and can be sent.")
    st.download_button(
        "Report", lambda: _report(folder), file_name=f"{folder.name}-report.html", mime="text/html", key="report",
        on_click="ignore", icon=":material/description:", type="primary",
    )  # fmt: skip


def _report(folder: Path) -> str:
    from dashboards.report.content import read_content
    from dashboards.report.page import render

    return render(read_content(folder))


def _show_experiment(subject: Subject) -> None:
    shown = st.expander("The same as an experiment file", icon=":material/science:", on_change="rerun", key="look-yaml")
    if not shown.open:
        return
    with shown, panels.errors_shown():
        from dashboards.steps.as_experiment import look_experiment

        text = look_experiment(subject)
        st.download_button(
            "experiment.yaml", text, file_name="experiment.yaml", mime="application/yaml", key="look-yaml-file",
            on_click="ignore", icon=":material/download:",
        )  # fmt: skip
        st.code(text, language="yaml", wrap_lines=True)
