"""The chat: base and tuned side by side, and the tuned model under a recipe; streamed, same seed, several turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboards import jobs, models, panels
from dashboards.answers import hover_tokens
from dashboards.chatting import ChatReply, ChatTurn, Sampling, messages_of, reply
from dashboards.recipe_parts import Part
from dashboards.selection import current
from dashboards.steps.subject import Subject
from dashboards.work_on_button import prefilled

if TYPE_CHECKING:
    from workbench.models.pair import ModelPair

NONE = "no recipe"
_EDITS = "_chat-edits"


def show(subject: Subject, recipes: Mapping[str, tuple[Part, str]]) -> None:
    """The box, and the turns so far; ``recipes`` are candidates with the side that each acts on."""
    st.subheader("Chat with both" if not recipes else "Try it: base, tuned and steered")
    recipe = _recipe(recipes)
    sampling = _sampling()
    turns = _turns(subject)
    for number, turn in enumerate(turns):
        _show_turn(subject, number, turn)
    busy = bool(jobs.desk().active)
    pending = st.session_state.pop("_chat-again", None)
    prompt = _selected_prompt()
    prefilled("chat-text", prompt)
    with st.form("chat", clear_on_submit=True, border=False):
        left, right = st.columns([4, 1], vertical_alignment="bottom")
        label = "Say something to both" if recipe is None else "Say something to all three"
        box = left.text_area if "\n" in prompt else left.text_input  # an input of one line would drop the breaks
        said = box(label, key="chat-text", disabled=busy)
        sent = right.form_submit_button("Send", icon=":material/send:", disabled=busy)
    if busy:
        st.caption("A task is at work on the models; the chat opens when the queue is empty.")
        return
    if turns and st.button("New chat", icon=":material/restart_alt:", key="chat-new"):
        turns.clear()
        st.rerun()
    text = pending or (said if sent else "")
    if text and text.strip():
        with panels.errors_shown():
            turns.append(_answered(subject, turns, text.strip(), sampling, recipe))
            st.rerun()


def _recipe(recipes: Mapping[str, tuple[Part, str]]) -> tuple[Part, str] | None:
    if not recipes:
        return None
    names = [*recipes, NONE]
    if st.session_state.get("chat-recipe") not in names:
        st.session_state["chat-recipe"] = names[0]
    name = st.selectbox("Steered with", names, key="chat-recipe", format_func=panels.visible, width=420)
    return recipes.get(name)


def _sampling() -> Sampling:
    with st.popover("How answers are drawn", icon=":material/casino:", type="tertiary"):
        tokens = st.number_input("New tokens per answer", 1, 512, 32, key="chat-tokens", persist_state="session")
        temperature = st.slider(
            "Temperature", 0.0, 2.0, 0.0, 0.1, key="chat-temperature", persist_state="session",
            help="0: always the most likely token. Above it all sides draw with the same random numbers.",
        )  # fmt: skip
        seed = st.number_input("Seed", 0, None, 0, key="chat-seed", persist_state="session")
    return Sampling(int(tokens), float(temperature), int(seed))


def _turns(subject: Subject) -> list[ChatTurn]:
    chats: dict[Any, list[ChatTurn]] = st.session_state.setdefault("_chats", {})
    return chats.setdefault(subject.key, [])


def _selected_prompt() -> str:
    """The box begins with the selected prompt, and follows it."""
    selection = current()
    rows = None
    with panels.errors_shown():
        rows = selection.rows()
    return panels.visible(rows[selection.prompt].shown) if rows is not None and selection.prompt < len(rows) else ""


def _answered(
    subject: Subject, turns: list[ChatTurn], text: str, sampling: Sampling, recipe: tuple[Part, str] | None
) -> ChatTurn:
    """All sides answer in turn, each streamed into its column."""
    with st.chat_message("user"):
        st.text(panels.visible(text))
    sides = ["base", "tuned", *(["steered"] if recipe is not None else [])]
    places = dict(zip(sides, st.columns(len(sides)), strict=True))
    replies: dict[str, ChatReply] = {}
    with jobs.desk().models_held():
        pair = models.pair(subject.base, subject.tuned, dtype=models.quick_dtype(subject.base))
        for side, place in places.items():
            with place:
                st.caption(side)
                shown = st.empty()
            messages = messages_of(turns, side if any(side in turn.replies for turn in turns) else "tuned", text)
            model, made = _model(pair, side, recipe)
            replies[side] = reply(model, messages, sampling, _writer(shown), made)
    return ChatTurn(text, replies)


def _writer(place: Any) -> Callable[[str], None]:
    """Shows a growing text in ``place``."""
    return lambda text: place.text(panels.visible(text))


def _model(pair: ModelPair, side: str, recipe: tuple[Part, str] | None) -> tuple[Any, Any]:
    if side != "steered" or recipe is None:
        return pair.models[side], None
    part, on = recipe
    return pair.models[on], part.made(pair)


def _show_turn(subject: Subject, number: int, turn: ChatTurn) -> None:
    with st.chat_message("user"):
        left, right = st.columns([8, 1])
        left.text(panels.visible(turn.user))
        state = st.session_state
        place = f"{state.get(_EDITS, 0)}-{number}"  # a new box after each edit: the one that was open is closed
        with right, st.popover("Edit", type="tertiary", key=f"edit-{place}"):
            text = st.text_area("Say this instead", turn.user, key=f"edit-text-{place}")
            if st.button("Run again from here", key=f"edit-go-{place}"):
                del _turns(subject)[number:]
                state["_chat-again"], state[_EDITS] = text, state.get(_EDITS, 0) + 1
                st.rerun()
    for place, (side, answer) in zip(st.columns(len(turn.replies)), turn.replies.items(), strict=True):
        with place, st.container(key=f"said-{number}-{side}"):
            st.caption(side)
            st.html(hover_tokens(answer, turn.replies["base"]))
            _show_restored(answer)


def _show_restored(answer: ChatReply) -> None:
    """The proof, below an answer under a recipe, that the model is as it was."""
    if answer.restored:
        st.caption(":material/verified: Model restored: 0 hooks, logits identical")
    elif answer.restored is False:
        st.error("The model did not come back as it was. Restart the app.", icon=":material/error:")
