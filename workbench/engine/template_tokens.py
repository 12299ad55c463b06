"""Which tokens a person wrote, and which a tokenizer's special tokens and chat template put around them.

The first token of a row and the template's tokens are where models park what belongs to no word (attention sinks, Xiao
et al. 2024; massive activations, Sun et al. 2024): their norms are many times those of the other tokens, so one of them
decides any mean that it enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError

from workbench.typing import Bool, Int, Tensor

_TURNS = ("qvx", "kwz", "jyq")
"""Words that no template contains; its own text is what stands between them."""


class TemplateTokens:
    """The special tokens of a tokenizer and the token sequences that its chat template writes around the turns.

    Worked out when first asked for: three short chats are rendered.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def special(self) -> tuple[int, ...]:
        """Ids of the tokens that the tokenizer itself calls special (the unknown token stands for a word)."""
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        return tuple(sorted({int(token) for token in self._tokenizer.all_special_ids} - {unknown}))

    @cached_property
    def pieces(self) -> tuple[tuple[int, ...], ...]:
        """Token sequences between the turns of a rendered chat, the longest first."""
        first, second, third = _TURNS
        chats = [[("user", first)], [("system", first), ("user", second)]]
        chats += [[("user", first), ("assistant", second), ("user", third)]]
        pieces = {piece for chat in chats for piece in self._around(chat)}
        return tuple(sorted(pieces, key=lambda piece: (-len(piece), piece)))

    def mark(self, ids: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where a token is special or part of the template."""
        marked = torch.isin(ids, torch.tensor(self.special, dtype=ids.dtype, device=ids.device))
        if not self.pieces or ids.shape[1] == 1:
            return marked
        for row, (tokens, known) in enumerate(zip(ids.tolist(), real.tolist(), strict=True)):
            start = known.index(True) if True in known else len(tokens)
            for low, high in self._spans(tokens[start:]):
                marked[row, start + low : start + high] = True
        return marked

    def content(self, ids: Sequence[int]) -> list[bool]:
        """Of one row without padding: whether each token is content (neither first, nor special, nor template)."""
        row = torch.tensor([list(ids)])
        return [place > 0 and not marked for place, marked in enumerate(self.mark(row, torch.ones_like(row).bool())[0])]

    def _around(self, chat: list[tuple[str, str]]) -> list[tuple[int, ...]]:
        """The ids of what the template writes before, between and after the turns."""
        tokenizer = self._tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return []
        turns = [{"role": role, "content": text} for role, text in chat]
        texts: list[str] = []
        for opened in (True, False):
            try:
                rest = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
            except (TemplateError, ValueError):  # a template may refuse a system turn
                return []
            for _, word in chat:
                before, present, rest = rest.partition(word)
                if not present:
                    return []
                texts.append(before)
            texts.append(rest)
        ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts if text.strip()]
        return [token for token in ids if token]

    def _spans(self, tokens: list[int]) -> list[tuple[int, int]]:
        """Where pieces stand; one without a special token only opens the row or ends it."""
        special, spans, place = set(self.special), [], 0
        while place < len(tokens):
            size = 0
            for piece in self.pieces:
                end = place + len(piece)
                at_an_edge = place == 0 or end == len(tokens)
                if tokens[place:end] == list(piece) and (at_an_edge or special & set(piece)):
                    size = len(piece)
                    break
            if size:
                spans.append((place, place + size))
            place += size or 1
        return spans
