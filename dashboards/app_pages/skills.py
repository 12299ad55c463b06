"""Skills: the smallest set of tuned weights that carries a behaviour, and what it does in the base."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import answers, panels
from dashboards.as_experiment import overlap_experiment, written_out
from dashboards.results import StoredResult
from dashboards.run_front import front_for_more, front_if_missing
from dashboards.selection import Selection, picks
from dashboards.steering import Steered, run_steer
from dashboards.views.source import (
    LINKED,
    Request,
    Source,
    one_of,
    opened,
    prompt_of,
    request_of,
    result_table,
)
from dashboards.work_on_button import Work, on_button, prefilled
from workbench.errors import UserError

MOST_PROMPTS = 12  # that are answered; no docstring, Streamlit would show it
NEW_TOKENS = 8
_SWITCH = Work(
    "graft", "Put the graft into the base", "Answering with base, tuned and grafted model…",
    "Press Put the graft into the base: answers with and without it appear here.",
)  # fmt: skip


def show() -> None:
    """The page."""
    st.title("Skills")
    st.caption("Which tuned weights, put into the base, carry the behaviour; all others stay the base's.")
    selection = opened()
    if selection is None:
        return
    grafts = sorted(selection.results("GraftResult"), key=lambda graft: -len(graft.load().curve))
    shown_graft = one_of(grafts, "Graft", "graft")
    if shown_graft is None:
        with panels.errors_shown():
            front_if_missing("No graft was found for this pair yet. Run finds one here.", "skills", selection, "skills")
        return
    front_for_more("Find another graft", "skills", selection, "skills")
    with panels.errors_shown():
        source = Source.stored(shown_graft, selection)
        _show_graft(source)
        _show_regions(source)
    st.header("Do two skills share weights?")
    with panels.errors_shown():
        _show_overlap(selection, grafts)
    st.header("Switch it on")
    with panels.errors_shown():
        _show_switch(selection, source)


def _show_graft(source: Source) -> None:
    result = source.result
    left, right = st.columns(2)
    with left, st.container(border=True):
        st.metric("Of the tuned model's gain, the graft brings", f"{result.recovered:.0%}")
        shown = {row["model"]: row for row in result.models.to_dict("records")}
        accuracies = (f"{name} {shown[name]['accuracy']:.2f} [{shown[name]['low']:.2f}, {shown[name]['high']:.2f}]"
                for name in ("base", "graft", "tuned"))  # fmt: skip
        st.caption(
            panels.words(f"accuracy: {', '.join(accuracies)}; n = {result.of('graft', 'n'):.0f} held-out prompts")
        )
    with right, st.container(border=True):
        st.metric("Weights in the graft", f"{result.sparsity:.2%}")
        st.caption(f"{result.entries:,} of {result.eligible:,} weights inside the layers, chosen by {result.level}")
    st.caption(panels.words(result.summary()))
    python = source.python
    panels.figure(
        "graft-curve", result.figure(), f"{python}result.figure().show()\n", source.provenance, frame=result.curve,
        experiment=source.experiment,
    )  # fmt: skip
    st.subheader("The graft, and the rest without it")
    from workbench.figures.graft import variants_figure

    title = f"At {result.sparsity:.2%} of the weights (n = {result.of('graft', 'n'):.0f} held-out prompts)"
    code = f"{python}from workbench.figures.graft import variants_figure\n\nvariants_figure(result.models).show()\n"
    panels.figure(
        "graft-models", variants_figure(result.models, title=title), code, source.provenance, frame=result.models,
        experiment=source.experiment,
    )  # fmt: skip


def _show_regions(source: Source) -> None:
    from workbench.figures.weights import cell_map

    result = source.result
    st.header("Where its weights lie")
    st.caption(
        f"Share of each tensor's weights that are in the graft; everywhere it is {result.sparsity:.2%} (the control). "
        "Grey: not more than chance (q >= 0.05)."
    )
    frame = result.frame()
    title = "Share of the tensor's weights in the graft, less the share everywhere"
    shift = {name: frame[name] - frame["control"] for name in ("score", "low", "high")}
    drawn = cell_map(frame.assign(**shift, control=0.0), "module", title=title, unit="share above chance")
    drawn.update_xaxes(tickangle=-30)
    code = (
        f"{source.python}from workbench.figures.weights import cell_map\n\ntable = result.frame()\n"
        "shift = {name: table[name] - table['control'] for name in ('score', 'low', 'high')}\n"
        "cell_map(table.assign(**shift, control=0.0), 'module').show()\n"
    )
    panels.figure(
        "graft-regions", drawn, code, source.provenance, frame=frame, on_pick=picks("layer"),
        experiment=source.experiment,
    )  # fmt: skip
    result_table("graft-tensors", source, frame, "result.frame()")


def _show_overlap(selection: Selection, grafts: list[StoredResult]) -> None:
    table = _overlaps(grafts)
    if table.empty:
        st.info(
            "There is one graft of entries for this pair; a second one, by another method (movement) or of another "
            "task, can be compared with it: see Find another graft above.", icon=":material/info:",
        )  # fmt: skip
        return
    from workbench.figures.overlap import shared_bars

    st.caption("Weights that are in both regions, beside what two random regions of these sizes share.")
    code = "from itertools import combinations\n\nimport pandas as pd\nimport probes\n"
    code += "from workbench.figures.overlap import shared_bars\nfrom workbench.results import Result\n\ngrafts = {\n"
    code += "".join(f"    {graft.name!r}: Result.load({str(graft.path)!r}),\n" for graft in grafts)
    code += (
        "}\ntable = pd.DataFrame([\n"
        "    {'first': one, 'second': other, **probes.mask_overlap(grafts[one], grafts[other]).line()}\n"
        "    for one, other in combinations(grafts, 2)\n])\nshared_bars(table).show()\n"
    )
    provenance = {"run": selection.run, "results": {graft.file: graft.sha256 for graft in grafts}}
    panels.figure(
        "graft-overlap", shared_bars(table, title="Shared weights beside chance"), code, provenance, frame=table,
        experiment=lambda: overlap_experiment(selection, [graft for graft in grafts if graft.load().level != "ranks"]),
    )  # fmt: skip


def _overlaps(grafts: list[StoredResult]) -> pd.DataFrame:
    """first, second, shared, expected, low, high, p, jaccard for every two grafts that choose entries."""
    from probes import mask_overlap

    loaded = {graft.name: graft.load() for graft in grafts}
    rows = [
        {"first": name, "second": other, **mask_overlap(loaded[name], loaded[other]).line()}
        for name, other in combinations([name for name, result in loaded.items() if result.level != "ranks"], 2)
    ]
    return pd.DataFrame(rows)


def _show_switch(selection: Selection, source: Source) -> None:
    if source.result.level == "ranks":
        st.info("A graft of ranks is turned with AdapterScale: see the page Steer, Weights.", icon=":material/info:")
        return
    st.caption("Live, on the base. What random masks of this size do is measured above.")
    request = request_of(selection, source.provenance["file"])
    if request is None:
        return
    prefilled("graft-begins", (prompt_of(request, selection.prompt).answer or "").strip())
    beginning = st.text_input(
        "Count answers that begin with", key="graft-begins", help="A word or a phrase, such as a refusal.", **LINKED
    )
    rows = request.prompts[selection.prompt : selection.prompt + MOST_PROMPTS]
    rows = rows if len(rows) else request.prompts[:MOST_PROMPTS]
    request = replace(request, prompts=rows, what=(*request.what, selection.prompt))
    done = on_button(_SWITCH, request, lambda request, _progress: _switch(request, source.result))
    if done is None:
        return
    of, result = done
    changed = sum(place is not None for place in result.parted)
    st.markdown(f"**{changed} of {len(result.prompts)} answers of the base changed** by the graft")
    if beginning.strip():
        answers.counted(result, beginning, "base", of.prompts.clusters)
    answers.side_by_side(result, "base")
    if result.restored:
        st.success("Model restored: 0 hooks, logits identical", icon=":material/verified:")
    else:
        st.error("Model not restored. Restart the app.")
    last = of.what[-1] + len(of.prompts)
    code = (
        f"import interventions as iv\n{source.python}{of.python()}\nprompts = prompts[{of.what[-1]}:{last}]\n"
        "with iv.Recipe([result.intervention(pair)]).applied(pair.base):\n"
        f"    texts = pair.base.generate(prompts, max_new_tokens={NEW_TOKENS})\n"
    )
    counted = {"begins": beginning.strip()} if beginning.strip() else {}
    step = {"do": "generate", "recipes": ["answers"], "on": "base", "max_new_tokens": NEW_TOKENS, **counted}
    graft = [{"kind": "Graft", "skill": {"file": str(Path(of.what[0]).resolve())}}]
    panels.footer(
        "graft-answers", code, frame=result.frame(), provenance=of.provenance(),
        experiment=lambda: of.experiment("answers", step, written_out(of.prompts), graft),
    )  # fmt: skip


def _switch(request: Request, graft: Any) -> Steered:
    import interventions as iv

    pair = request.pair()
    if any(row.kind != "prompt" for row in request.prompts):
        raise UserError("These prompts are chats or token ids; steer them on the page Steer as plain text.")
    recipe = iv.Recipe([graft.intervention(pair)])
    texts = [str(row) for row in request.prompts]
    return run_steer(pair, recipe, texts, strength=1.0, side="base", max_new_tokens=NEW_TOKENS)


show()
