"""Prompts as token ids: the chat template applied once, one BOS, left padding, batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.prompt_rows import rows_of
from workbench.prompts.row import Prompt
from workbench.prompts.templates import as_read, chat_text
from workbench.typing import Int, Tensor

_AT_ONCE = 1024
"""Texts per call of the tokenizer, which holds more about each token than its id until the call is over."""


@dataclass(frozen=True)
class Encoded:
    """A left-padded batch of token ids, ready for a model."""

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    """1 for a real token, 0 for padding."""

    def to(self, device: torch.device | str) -> Encoded:
        return Encoded(self.input_ids.to(device), self.attention_mask.to(device))

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many real tokens each row has."""
        return self.attention_mask.sum(dim=1)

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Positions counted from each row's first real token; models with learned positions need them."""
        return (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)

    def __len__(self) -> int:
        return len(self.input_ids)


def render(row: Prompt, tokenizer: Any) -> str:
    """The text the model reads: a prompt or a chat put through the tokenizer's template, token ids decoded.

    A plain prompt is a user turn where the tokenizer has a template, see :func:`workbench.prompts.templates.as_read`. A
    chat that ends with the assistant's own words is continued; any other gets the opening of its answer.
    """
    if row.input_ids is not None:
        return " ".join(map(str, row.input_ids)) if tokenizer is None else tokenizer.decode(list(row.input_ids))
    check_tokenizer(tokenizer)
    read = as_read(row, tokenizer)
    return (read.prompt or "") if read.messages is None else chat_text(read.messages, tokenizer)


def readable(row: Prompt, tokenizer: Any) -> str:
    """The row for a person: its text, its turns by role, or its token ids decoded."""
    return str(row) if row.input_ids is None else render(row, tokenizer)


def token_ids(text: str, tokenizer: Any, *, rendered_chat: bool) -> list[int]:
    """Token ids of a rendered prompt, with the tokenizer's own special tokens and never two BOS in front.

    A rendered chat carries its special tokens already; so may a plain prompt that was pasted from one.
    """
    return _batch_of_ids([text], tokenizer, rendered_chat=rendered_chat)[0]


def _batch_of_ids(texts: list[str], tokenizer: Any, *, rendered_chat: bool) -> list[list[int]]:
    """:func:`token_ids` of many texts in one call of the tokenizer."""
    if _plain(tokenizer):
        from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

        # What the tokenizer itself does, without the place of every token in its text, which costs as much again.
        tokenizer.set_truncation_and_padding(
            padding_strategy=PaddingStrategy.DO_NOT_PAD, truncation_strategy=TruncationStrategy.DO_NOT_TRUNCATE,
            max_length=None, stride=0, pad_to_multiple_of=None, padding_side=None,
        )  # fmt: skip
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=not rendered_chat)
        id_rows = [row.ids for row in encoded]
    else:
        id_rows = tokenizer(texts, add_special_tokens=not rendered_chat, verbose=False)["input_ids"]
    return [_one_bos(list(ids), tokenizer.bos_token_id) for ids in id_rows]


def _plain(tokenizer: Any) -> bool:
    """Whether calling the tokenizer is the library's own call of its fast backend, which some classes override."""
    from transformers import PreTrainedTokenizerFast as fast

    kind = type(tokenizer)
    return (
        isinstance(tokenizer, fast)
        and (kind.__call__, kind._encode_plus) == (fast.__call__, fast._encode_plus)
        and tokenizer.backend_tokenizer.encode_special_tokens == tokenizer.split_special_tokens
    )


def _one_bos(ids: list[int], bos: int | None) -> list[int]:
    while bos is not None and ids[:2] == [bos, bos]:
        ids.pop(0)
    return ids


def encode(prompts: Any, tokenizer: Any, max_length: int | None = None) -> list[list[int]]:
    """Token ids of every prompt, in order; those of a row that has token ids already as they are.

    A tokenizer of a pair with trained prompt rows puts their placeholders into the others.
    Raises :class:`UserError` naming the prompt when one is empty, longer than ``max_length`` tokens, a
    chat the tokenizer has no template for, or holds an id that this tokenizer does not know.
    """
    rows = Prompts.of(prompts)
    if not rows:
        raise UserError("There are no prompts to encode; give at least one.")
    ids: list[list[int]] = [[] if row.input_ids is None else list(row.input_ids) for row in rows]
    if tokenizer is None:
        return _given_alone(ids, max_length)
    _check_known(ids, tokenizer)
    kinds, placing = [_kind_read(row, number, tokenizer) for number, row in enumerate(rows)], rows_of(tokenizer)
    for kind in ("prompt", "messages"):
        alike = [number for number, other_kind in enumerate(kinds) if other_kind == kind]
        for start in range(0, len(alike), _AT_ONCE):
            numbers = alike[start : start + _AT_ONCE]
            texts = [_rendered(rows[number], number, tokenizer) for number in numbers]
            id_rows = _batch_of_ids(texts, tokenizer, rendered_chat=kind == "messages")
            for number, row_ids in zip(numbers, id_rows, strict=True):
                ids[number] = row_ids if placing is None else placing.placed(row_ids, tokenizer.bos_token_id)
    for number, row_ids in enumerate(ids):
        _check_length(row_ids, number, max_length)
    return ids


def check_tokenizer(tokenizer: Any) -> None:
    """Raises :class:`UserError` where text is to be read and the models came without a tokenizer."""
    if tokenizer is None:
        raise UserError("The models came without a tokenizer: load them with tokenizer=, or give prompts as input_ids.")


def _given_alone(ids: list[list[int]], max_length: int | None) -> list[list[int]]:
    """Token ids that were given, for models without a tokenizer."""
    for number, ids_of_row in enumerate(ids):
        if not ids_of_row:
            check_tokenizer(None)
        _check_length(ids_of_row, number, max_length)
    return ids


def _check_known(id_rows: list[list[int]], tokenizer: Any) -> None:
    """Token ids that were given belong to this tokenizer, as far as their numbers tell, and are not padded."""
    size, pad = 0, _only_for_padding(tokenizer)
    for number, ids in enumerate(id_rows):
        if ids and pad is not None and pad in (ids[0], ids[-1]):
            raise UserError(
                f"Prompt {number} {'begins' if ids[0] == pad else 'ends'} with the padding token {pad}, which the "
                "model would read: give the tokenizer's attention_mask with the ids, or rows without padding."
            )
        if ids and max(ids) >= (size := size or len(tokenizer)):
            raise UserError(
                f"Prompt {number} has the token id {max(ids)} and this tokenizer knows 0 to {size - 1}; "
                "give ids that it made, or text."
            )


def _only_for_padding(tokenizer: Any) -> int | None:
    """The padding token's id, unless it means something else as well (the end of a text, mostly)."""
    pad: int | None = tokenizer.pad_token_id
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return None if pad in others else pad


def _check_length(ids: list[int], number: int, max_length: int | None) -> None:
    if not ids:
        raise UserError(f"Prompt {number} has no tokens; remove it or give it text.")
    if max_length is not None and len(ids) > max_length:
        raise UserError(
            f"Prompt {number} has {len(ids)} tokens and the limit is {max_length}; shorten it or remove it."
        )


def _kind_read(row: Prompt, number: int, tokenizer: Any) -> str:
    """The kind of the row as it is read: a text may be a user turn."""
    try:
        return as_read(row, tokenizer).kind
    except UserError as error:
        raise UserError(f"Prompt {number}: {error}") from error


def _rendered(row: Prompt, number: int, tokenizer: Any) -> str:
    try:
        return render(row, tokenizer)
    except UserError as error:
        raise UserError(f"Prompt {number}: {error}") from error


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> Encoded:
    """One batch of rows padded in front to the longest, so that the last column is every row's last token."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) >= lengths.max() - lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    return Encoded(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)))


def batches(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Row numbers of each batch: rows of similar length together, the longest first.

    A batch has at most ``batch_size`` rows and, padded, at most ``max_tokens`` tokens (a longer row goes
    alone). The longest come first so that memory runs out at once or not at all. The same lengths give the
    same batches.
    """
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; give 1 or more.")
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if made and len(made[-1]) < batch_size and _fits(lengths[made[-1][0]], len(made[-1]) + 1, max_tokens):
            made[-1].append(row)
        else:
            made.append([row])
    return made


def _fits(longest: int, rows: int, max_tokens: int | None) -> bool:
    return max_tokens is None or longest * rows <= max_tokens
