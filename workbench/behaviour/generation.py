"""Generated texts that can be compared: greedy, and sampled with the same random numbers for every model.

Sampling adds Gumbel noise to the scaled logits and takes the largest (the Gumbel-max trick), which draws exactly from
the softmax. The noise of a text hangs on the seed, the prompt, the number of the sample, the step and the token alone:
not on the model, the batch or the padding. So two models that agree write the same text, and a difference between
texts is one between models.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from workbench.behaviour.known_replies import KnownReplies, current
from workbench.behaviour.subject import Subject, Work, padded
from workbench.errors import UserError
from workbench.finished_batches import fingerprint
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Tensor
from workbench.vllm.route import Route, route_of


@dataclass(frozen=True)
class Decoding:
    """How texts are generated: always one greedily, and ``samples`` more by sampling."""

    max_new_tokens: int = 32
    samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.samples < 0 or self.top_k < 0:
            raise UserError("Give max_new_tokens of 1 or more, samples and top_k of 0 or more.")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise UserError("Give a temperature above 0 and top_p above 0, up to 1; greedy is samples=0.")


@dataclass(frozen=True)
class Reply:
    """One generated text."""

    ids: tuple[int, ...]
    """New tokens, with the one that ended the text."""
    text: str
    """Without special tokens."""
    ended: bool
    """Whether the model ended it, rather than the limit of new tokens."""

    @property
    def content(self) -> tuple[int, ...]:
        """The tokens without the one that ended the text."""
        return self.ids[:-1] if self.ended else self.ids


def generate_replies(subject: Subject, prompts: Prompts, decoding: Decoding, work: Work) -> list[list[Reply]]:
    """Texts [prompt][sample]; sample 0 is greedy. A repeated prompt gets noise of its own. Inside
    :func:`workbench.behaviour.known_replies.known_replies` a plain model's greedy answer is written once."""
    model = subject.model
    ids = encode(prompts, model.tokenizer, model.max_positions)
    _check_room(model, max(len(row) for row in ids), decoding.max_new_tokens)
    is_plain = subject.recipe is None and subject.per_row is None and not model.hub.holdings
    if is_plain and not decoding.samples and (known := current()) is not None:
        return _known_or_written(known, subject, prompts, ids, decoding, work)
    return _replies(subject, prompts, ids, decoding, work)


def _known_or_written(
    known: KnownReplies, subject: Subject, prompts: Prompts, ids: list[list[int]], decoding: Decoding, work: Work
) -> list[list[Reply]]:
    model, limit = subject.model.identity.hash, decoding.max_new_tokens
    missing = [row for row, read in enumerate(ids) if known.of(model, read, limit) is None]
    if missing:
        written = _replies(subject, prompts[missing], [ids[row] for row in missing], decoding, work)
        for row, (reply,) in zip(missing, written, strict=True):
            known.add(model, ids[row], limit, (reply.ids, reply.ended))
    answers = [known.of(model, read, limit) or ((), False) for read in ids]
    words = subject.model.tokenizer
    return [[Reply(new, words.decode(new, skip_special_tokens=True), ended)] for new, ended in answers]


def _replies(
    subject: Subject, prompts: Prompts, ids: list[list[int]], decoding: Decoding, work: Work
) -> list[list[Reply]]:
    seeds = _seeds(prompts, decoding.seed)
    width = decoding.samples + 1
    jobs = [(prompt, sample) for prompt in range(len(ids)) for sample in range(width)]
    replies: list[list[Reply]] = [[Reply((), "", False)] * width for _ in ids]
    about = fingerprint([subject.name, subject.recipe, decoding])
    noise = [None if sample == 0 else f"{seeds[prompt]} {sample}" for prompt, sample in jobs]

    def take(rows: list[int], written: list[tuple[tuple[int, ...], str, bool]]) -> None:
        for row, new in zip(rows, written, strict=True):
            prompt, sample = jobs[row]
            replies[prompt][sample] = Reply(*new)

    work.each(
        f"{subject.name}: texts", [len(ids[prompt]) for prompt, _ in jobs],
        partial(_written, subject, ids, [prompt for prompt, _ in jobs], noise, decoding), take, subject.within,
        lambda rows: ["texts", about, [(ids[jobs[row][0]], noise[row]) for row in rows]],
    )  # fmt: skip
    return replies


def end_ids(model: AdaptedModel) -> set[int]:
    """The token ids that end a text."""
    configured = model.inner.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured])
    if model.tokenizer is not None:
        ends |= {model.tokenizer.eos_token_id}
    return {int(token) for token in ends if token is not None}


class SharedNoise:
    """Turns greedy search into sampling with noise that is the same for every model: one key per row, None: greedy."""

    def __init__(self, keys: Sequence[str | None], columns: int, decoding: Decoding) -> None:
        self._keys = [None if key is None else _philox_key(key) for key in keys]
        self._columns = columns
        self._temperature = decoding.temperature
        self._filters = LogitsProcessorList(
            ([TopKLogitsWarper(decoding.top_k)] if decoding.top_k else [])
            + ([TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else [])
        )

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [row, vocab] whose largest entry is the sampled token."""
        drawn = [row for row, key in enumerate(self._keys) if key is not None]
        if not drawn:
            return scores
        step = input_ids.shape[1] - self._columns
        noise = np.stack([gumbel(self._keys[row], step, scores.shape[-1]) for row in drawn])
        changed = scores.float().clone()
        changed[drawn] = self._noisy(scores[drawn], noise)
        return changed

    def at(self, row: int, step: int, scores: Tensor) -> Tensor:
        """Scores [1, vocab] of one row at one of its steps, for engines whose rows are not in step."""
        key = self._keys[row]
        return scores if key is None else self._noisy(scores, gumbel(key, step, scores.shape[-1])[None])

    def _noisy(self, scores: Tensor, noise: np.ndarray) -> Tensor:
        warped = self._filters(None, scores.float() / self._temperature)  # none of them reads the text
        return warped + torch.from_numpy(noise).to(warped)


def gumbel(key: Any, step: int, size: int) -> np.ndarray:
    """Standard Gumbel noise [token] for one step of one text; a larger vocabulary only adds entries."""
    stream = np.random.Generator(np.random.Philox(key=key, counter=[0, step, 0, 0]))
    uniform = np.maximum(stream.random(size), np.finfo(np.float64).tiny)
    return -np.log(-np.log(uniform))


def _written(
    subject: Subject,
    ids: list[list[int]],
    prompt_of: list[int],
    noise: list[str | None],
    decoding: Decoding,
    rows: list[int],
) -> list[tuple[tuple[int, ...], str, bool]]:
    """The fields of the :class:`Reply` of each text of one batch; ``prompt_of``: the number of each text's prompt."""
    members = [prompt_of[row] for row in rows]
    texts, draws = [ids[prompt] for prompt in members], [noise[row] for row in rows]
    if (route := route_of(subject.model)) is not None:
        return _by_vllm(route, subject, texts, members, draws, decoding)
    model, encoded = subject.model, padded(subject, texts)
    columns = encoded.input_ids.shape[1]
    options = {"max_new_tokens": decoding.max_new_tokens, "num_beams": 1, "num_return_sequences": 1}
    sampling = LogitsProcessorList([SharedNoise(draws, columns, decoding)])
    with subject.applied_to(members):
        new = model.generate_ids(encoded.to(model.device), logits_processor=sampling, **options)[:, columns:]
    ends = end_ids(model)
    return [_reply(row, ends, model.tokenizer) for row in new.tolist()]


def _by_vllm(
    route: Route,
    subject: Subject,
    texts: list[list[int]],
    members: list[int],
    noise: list[str | None],
    decoding: Decoding,
) -> list[tuple[tuple[int, ...], str, bool]]:
    """The same, written by vLLM with the same noise, each text under its own prompt's recipe."""
    model, ends = subject.model, end_ids(subject.model)
    warp = SharedNoise(noise, 0, decoding).at if any(noise) else None
    new = route.engine.run(
        model.role, texts, model, subject.row_hooks(members), warp=warp, max_tokens=decoding.max_new_tokens,
        stop_token_ids=sorted(ends),
    )  # fmt: skip
    return [_reply(row, ends, model.tokenizer) for row in new]


def _reply(ids: list[int], ends: set[int], tokenizer: Any) -> tuple[tuple[int, ...], str, bool]:
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    reply = ids if place is None else ids[: place + 1]
    return tuple(reply), tokenizer.decode(reply, skip_special_tokens=True), place is not None


def _seeds(prompts: Prompts, seed: int) -> list[str]:
    """One text per prompt that its noise is made of: the seed, the prompt and which of its repetitions it is."""
    met: Counter[str] = Counter()
    seeds = []
    for row in prompts:
        text = str(row)
        seeds.append(f"{seed} {met[text]} {text}")
        met[text] += 1
    return seeds


def _philox_key(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], dtype=np.uint64)


def _check_room(model: AdaptedModel, longest: int, new: int) -> None:
    limit = model.max_positions
    if limit is not None and longest + new > limit:
        raise UserError(
            f"The longest prompt has {longest} tokens and {new} more would pass the model's limit of {limit}; "
            "shorten it, or ask for fewer new tokens."
        )
