"""Chat templates: when a plain text is a user turn, and a chat as the text that a model reads."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from workbench.bounded import Verdict, rendering
from workbench.errors import UserError
from workbench.prompts.row import Message, Prompt

_OPENINGS: weakref.WeakKeyDictionary[Any, tuple[int, tuple[str, ...]]] = weakref.WeakKeyDictionary()
"""tokenizer -> (its size then, its special tokens' texts)."""
# what a template may raise beside its own errors: it is a program of the model's authors, run on the turns
_RAISED = (
    TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
_SAMPLE = [{"role": "user", "content": "The quick brown fox."}]


def has_template(tokenizer: Any) -> bool:
    """Whether ``tokenizer`` knows how a chat is written for its model."""
    return bool(getattr(tokenizer, "chat_template", None))


def as_read(row: Prompt, tokenizer: Any) -> Prompt:
    """``row`` as the model reads it: a plain text as a user turn where the tokenizer has a chat template.

    Text stays as it is with ``chat=False``, without a template, and where it begins with one of the tokenizer's special
    tokens, as text that was pasted from a rendered chat does. Raises UserError where ``chat=True`` and there is no
    template.
    """
    if row.prompt is None or row.chat is False:
        return row
    if not has_template(tokenizer):
        if row.chat:
            raise UserError(
                "It is to be a user turn (chat=True), and this tokenizer has no chat template; "
                "leave chat out, or give a model with a chat template."
            )
        return row
    if row.chat is None and row.prompt.lstrip().startswith(_openings(tokenizer)):
        return row
    return replace(row, prompt=None, chat=None, contrast=None, messages=({"role": "user", "content": row.prompt},))


def chat_text(turns: tuple[Message, ...], tokenizer: Any) -> str:
    """The chat ``turns`` through the tokenizer's template; one that ends with the assistant's words is continued.

    Raises UserError where there is no template, where the template refuses the turns, or leaves a system turn out.
    """
    if not has_template(tokenizer):
        raise UserError(
            "It is chat messages, and this tokenizer has no chat template; "
            "give plain prompts, or a model with a chat template."
        )
    _check_template(tokenizer)
    text = _with_parts(turns, tokenizer)
    for turn in turns:
        content = turn["content"]
        if turn["role"] == "system" and isinstance(content, str) and content.strip() not in text:
            raise UserError(
                "The chat template leaves the system turn out; put its text into the first user turn instead."
            )
    return text


def _with_parts(turns: Sequence[Message], tokenizer: Any) -> str:
    """The chat through the template, which may not know turns that are lists of parts: it then gets their text."""
    lists = [turn["content"] for turn in turns if _is_list(turn["content"])]
    if not lists:
        return _through_template(turns, tokenizer)
    whole_and_parts = [(parts, *(part for part in parts if isinstance(part, Mapping))) for parts in lists]
    as_python = [str(content) for contents in whole_and_parts for content in contents]
    try:
        text = _through_template(turns, tokenizer)
    except UserError:
        text = ""
    if text and not any(written in text for written in as_python):
        return text
    joined = [_joined(turn) for turn in turns]
    if any(_is_list(turn["content"]) for turn in joined):
        raise UserError(
            "A message holds parts that are no text, and this tokenizer's chat template does not know them; give its "
            "text alone."
        )
    return _through_template(joined, tokenizer)


def _joined(turn: Message) -> Message:
    """A turn of text parts with their text as its content; any other as it is."""
    content = turn["content"]
    parts = content if _is_list(content) else []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        return turn
    return {**turn, "content": "\n".join(map(str, texts))}


def _is_list(content: Any) -> bool:
    return isinstance(content, list | tuple)


def _through_template(turns: Sequence[Message], tokenizer: Any) -> str:
    continued = turns[-1]["role"] == "assistant"
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tokenize=False,
            add_generation_prompt=not continued,
            continue_final_message=continued,
        )
    except _RAISED as error:
        raise UserError(f"The chat template refuses its messages: {str(error) or type(error).__name__}") from error
    return text


def _check_template(tokenizer: Any) -> None:
    """Refuse a template that has no end, or fills the memory, on one short message."""
    template = tokenizer.chat_template
    for text in template.values() if isinstance(template, dict) else [template]:
        verdict = _verdict(str(text), str(tokenizer.bos_token or ""), str(tokenizer.eos_token or ""))
        if verdict != "fine":
            raise UserError(f"The chat template is {verdict} on one short message; use another tokenizer (tokenizer=).")


@lru_cache(maxsize=64)
def _verdict(template: str, bos: str, eos: str) -> Verdict:
    values = {"messages": _SAMPLE, "add_generation_prompt": True, "bos_token": bos, "eos_token": eos}
    return rendering(template, values, most=10**6)


def _openings(tokenizer: Any) -> tuple[str, ...]:
    size = len(tokenizer)
    cached = _OPENINGS.get(tokenizer)
    if cached is None or cached[0] != size:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        texts = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        cached = _OPENINGS[tokenizer] = size, tuple(sorted(text for text in texts if text.strip()))
    return cached[1]
