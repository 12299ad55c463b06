"""Record a pair: load a base and a tuned model, record both on the same prompts, and find the run in the app."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboards import jobs, panels, recording
from dashboards.as_experiment import record_experiment
from dashboards.pair_form import ENDINGS, POSITIONS, SITES, RecordRequest, pasted, uploaded
from dashboards.state import Opened, known_runs
from workbench import runs
from workbench.prompts import Prompts


def show() -> None:
    """The page."""
    st.title("Record a pair")
    st.caption(
        "Both models read the same prompts, and what passes at the chosen sites is kept, so that it can be compared."
    )
    own = [job for job in jobs.desk().jobs if job.page == recording.PAGE]
    if own and own[-1].is_active:
        st.info("The recording is above; you may look at other pages meanwhile, it goes on.", icon=":material/info:")
    elif own:
        _ended(own[-1])
    _form()


def _form() -> None:
    left, right = st.columns(2, gap="large")
    with left:
        base, tuned, sites, positions, device = _ask_pair()
    with right:
        read = _ask_prompts()
        name = st.text_input("Name of the run", "my-pair", key="pair-name", persist_state="session")
        st.caption(f"Goes to {panels.words(runs.default_home().resolve())}")
    request = RecordRequest(base.strip(), tuned.strip(), tuple(sites), positions, name.strip(), device)
    if st.button("Record", type="primary", icon=":material/fiber_manual_record:", key="go-record"):
        with panels.errors_shown():
            request.check()
            recording.begin(request, read())
            st.rerun()
    with st.expander("The same on the command line", icon=":material/terminal:"):
        st.code(request.command(), language="bash", wrap_lines=True)
    as_file = st.expander(
        "The same as an experiment file", icon=":material/science:", on_change="rerun", key="pair-yaml"
    )
    if as_file.open:
        with as_file, panels.errors_shown():
            request.check()
            st.code(record_experiment(request, read()), language="yaml")


def _ask_pair() -> tuple[str, str, list[str], str, str]:
    """Models, and what to keep of them."""
    opened = Opened.from_environment()
    st.subheader("Models")
    base = st.text_input(
        "Base model", opened.base, key="pair-base", placeholder="folder, hub id, or refusal-moe",
        persist_state="session",
        help="An organism's name (refusal-moe, context-knob) stands for a small trained pair.",
    )  # fmt: skip
    tuned = st.text_input(
        "Tuned model or PEFT adapter", opened.tuned, key="pair-tuned", persist_state="session",
        placeholder="folder or hub id; empty for an organism",
    )  # fmt: skip
    st.subheader("What to keep")
    sites = st.multiselect(
        "Sites", SITES, ["resid_post", "z"], key="pair-sites", accept_new_options=True, persist_state="session",
        help="resid_post: the residual stream after a layer. z: what each head puts out. router: its logits.",
    )  # fmt: skip
    positions = st.selectbox(
        "Tokens", POSITIONS, key="pair-positions", accept_new_options=True, persist_state="session",
        help="last: the last token of the prompt. all: every token. Or -1, prompt[-3:], …",
    )  # fmt: skip
    device = st.segmented_control(
        "Device", ["auto", "cpu", "cuda"], key="pair-device", default="auto", required=True,
        help="auto takes a GPU when there is one.",
    )  # fmt: skip
    return base, tuned, sites, str(positions), str(device)


def _ask_prompts() -> Callable[[], Prompts]:
    """Where the prompts come from; what is returned reads them."""
    st.subheader("Prompts")
    kind = st.segmented_control(
        "From", ["paste", "file"], key="pair-from", default="paste", required=True, label_visibility="collapsed"
    )
    file = st.file_uploader(f"A file: {', '.join(ENDINGS)}", ENDINGS, key="pair-file") if kind == "file" else None
    text = "" if kind == "file" else st.text_area(
        "One a line, or rows of JSON with prompt, answer, distractor, …", key="pair-prompts", height=236,
        persist_state="session",
    )  # fmt: skip
    return lambda: uploaded(file.name, file.getvalue()) if file is not None else pasted(text)


def _ended(job: jobs.Job) -> None:
    if job.state == "done":
        _, name = job.result
        st.success(f"{panels.words(job.name)}: done.", icon=":material/check:")
        if name in known_runs():
            st.page_link(
                "app_pages/overview.py", label="Open it", icon=":material/dashboard:", query_params={"run": name}
            )
    elif job.state == "stopped":
        st.warning(f"{panels.words(job.name)}: {panels.words(job.said)}.", icon=":material/stop:")
    else:
        st.error(f"{panels.words(job.name)}: {panels.words(job.said)}", icon=":material/error:")


show()
