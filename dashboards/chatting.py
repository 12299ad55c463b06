"""One turn of a chat with a model: streamed, seeded, and every token's probability afterwards; nothing here draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError

if TYPE_CHECKING:
    from interventions.recipe import Recipe
    from workbench.models.adapted import AdaptedModel

TOP = 5
"""Most likely tokens that are told beside the written one."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; models that agree draw the same tokens, as the noise hangs on the seed alone."""

    max_new_tokens: int = 48
    temperature: float = 0.0
    """0: the most likely token."""
    seed: int = 0


@dataclass(frozen=True)
class ChatReply:
    """An answer, token by token."""

    text: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    """Of each written token, by the model that wrote it (under its recipe)."""
    top: tuple[str, ...]
    """The most likely tokens at each place, with their probabilities, as a text."""
    restored: bool | None = None
    """Of an answer under a recipe: whether the model came back, without a hook and with the same logits bit by bit."""


@dataclass(frozen=True)
class ChatTurn:
    """What a person wrote, and what each side answered."""

    user: str
    replies: dict[str, ChatReply]


def messages_of(turns: Sequence[ChatTurn], side: str, user: str) -> list[dict[str, str]]:
    """The chat as ``side`` knows it: each side goes on from its own answers."""
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.user})
        if side in turn.replies:
            messages.append({"role": "assistant", "content": turn.replies[side].text})
    return [*messages, {"role": "user", "content": user}]


def reply(
    model: AdaptedModel,
    messages: list[dict[str, str]],
    sampling: Sampling,
    on_text: Callable[[str], None],
    recipe: Recipe | None = None,
) -> ChatReply:
    """Answer a chat, handing on the text as it grows.

    Args:
        model: Either side of a pair.
        messages: The turns so far, the last of a user; a model without a chat template reads their texts, one a line.
        sampling: How long, and how the tokens are drawn.
        on_text: Called with the whole answer so far after every token.
        recipe: What is done to the model meanwhile.

    Raises:
        UserError: The chat is longer than the model's context, or the recipe does not fit.
    """
    import torch
    from transformers import LogitsProcessorList

    from workbench.behaviour.generation import Decoding, SharedNoise

    batch = model.encode([_prompt(model, messages)])
    columns = batch.input_ids.shape[1]
    if model.max_positions is not None and columns + sampling.max_new_tokens > model.max_positions:
        raise UserError(
            f"The chat has {columns} tokens and {sampling.max_new_tokens} more would pass the model's limit of "
            f"{model.max_positions}: begin a new chat, or ask for fewer tokens."
        )
    options: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "streamer": _Streamer(model, on_text)}
    if sampling.temperature > 0:
        noise = SharedNoise([str(sampling.seed)], columns, Decoding(temperature=sampling.temperature))
        options["logits_processor"] = LogitsProcessorList([noise])
    if recipe is None:
        return _written(model, batch, options)
    before = _last_logits(model, batch)
    with recipe.applied(model):
        answer = _written(model, batch, options)
    same = torch.equal(before, _last_logits(model, batch))
    return replace(answer, restored=same and model.n_hooks == 0)


def _last_logits(model: AdaptedModel, batch: Any) -> Any:
    logits = model.forward(batch, logits="last")
    assert logits is not None
    return logits


def _written(model: AdaptedModel, batch: Any, options: dict[str, Any]) -> ChatReply:
    from workbench.behaviour.generation import end_ids

    columns = batch.input_ids.shape[1]
    ids = model.generate_ids(batch, **options)[0]
    new = ids[columns:].tolist()
    ends = end_ids(model)
    reply_ids = next((new[:place] for place, token in enumerate(new) if token in ends), new)
    return _told(model, ids[: columns + len(reply_ids)], columns)


def _prompt(model: AdaptedModel, messages: list[dict[str, str]]) -> Any:
    from workbench.prompts.templates import has_template

    if has_template(model.tokenizer):
        return {"messages": messages}
    return "\n".join(turn["content"] for turn in messages)


def _told(model: AdaptedModel, ids: Any, columns: int) -> ChatReply:
    """Probabilities by one forward pass over the whole chat."""
    written = ids[columns:].tolist()
    if not written:
        return ChatReply("", (), (), ())
    logits = model.forward(ids[None], logits=len(written) + 1)
    assert logits is not None
    shares = logits[0, :-1].float().softmax(-1)
    best = shares.topk(min(TOP, shares.shape[-1]))
    tokens = [model.tokenizer.decode([token]) for token in written]
    top = [
        ", ".join(f"{model.tokenizer.decode([token])!r} {share:.1%}" for token, share in zip(*line, strict=True))
        for line in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return ChatReply(
        model.tokenizer.decode(written, skip_special_tokens=True), tuple(tokens),
        tuple(float(shares[place, token]) for place, token in enumerate(written)), tuple(top),
    )  # fmt: skip


class _Streamer:
    """Hugging Face's ``generate`` hands it the prompt, then each token."""

    def __init__(self, model: AdaptedModel, on_text: Callable[[str], None]) -> None:
        self._decode, self._on_text = model.tokenizer.decode, on_text
        self._ids: list[int] = []
        self._has_prompt = False

    def put(self, ids: Any) -> None:
        """The prompt at first, then one token at a time."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._ids += ids.reshape(-1).tolist()
        self._on_text(self._decode(self._ids, skip_special_tokens=True))

    def end(self) -> None:
        """Nothing is left to hand on."""
