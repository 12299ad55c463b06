"""Soft prompts: a few learned vectors read in front of a prompt, on a frozen model (Lester et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from interventions.recipe import as_adapted
from interventions.training.examples import answer_loss, examples_of
from interventions.training.trainer import Schedule, train_on_frozen
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.prompts.prompt_rows import PromptRows, rows_read
from workbench.typing import Float, Tensor


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Learned vectors [token, d_model] that stand for the embeddings of placeholder tokens in front of a prompt.

    Rows made by :meth:`before` are read with the vectors inside ``with soft.applied(model):``, also in generation;
    everything else passes as it is.
    """

    vectors: Float[Tensor, "token d_model"]
    placeholder: int
    """A token id that no prompt holds."""
    history: tuple[dict[str, float], ...] = field(default=(), repr=False)
    """Per step: ``step``, ``epoch``, ``loss`` in nats."""

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        save_file({"vectors": self.vectors.contiguous(), "placeholder": torch.tensor(self.placeholder)}, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> SoftPrompt:
        """The vectors in a file that :meth:`save` wrote; the history is not in it."""
        held = load_file(path)
        return cls(held["vectors"], int(held["placeholder"]))

    def before(self, prompts: Any, tokenizer: Any) -> Prompts:
        """The prompts with placeholders in front (behind the token that begins a text), their answers as before."""
        return with_placeholders(Prompts.of(prompts), tokenizer, self.placeholder, len(self.vectors))

    @contextmanager
    def applied(self, model: AdaptedModel) -> Iterator[None]:
        """Let ``model`` read the vectors where placeholders stand, until the context is left."""
        with reading(model, self.placeholder, self.vectors):
            yield


@contextmanager
def reading(model: AdaptedModel, placeholder: int, vectors: Tensor) -> Iterator[None]:
    """Embed placeholders as the vectors, in their order, until the context is left."""

    def put(_module: nn.Module, args: Any, embedded: Tensor) -> Tensor | None:
        return rows_read(args[0], placeholder, vectors, embedded)

    handle = model.inner.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def with_placeholders(rows: Prompts, tokenizer: Any, placeholder: int, count: int) -> Prompts:
    """Rows as token ids with ``count`` placeholders in front; answers and distractors keep their tokens."""
    made = []
    for row, ids in zip(rows, encode(rows, tokenizer), strict=True):
        read = tuple(PromptRows(placeholder, count).placed(ids, tokenizer.bos_token_id))
        known = {
            f"{name}_ids": continuation_ids(row, tokenizer, text)
            for name, text in (("answer", row.answer), ("distractor", row.distractor))
            if text
        }
        made.append(dataclasses.replace(
            row, prompt=None, messages=None, chat=None, contrast=None, input_ids=read, columns={**row.columns, **known}
        ))  # fmt: skip
    return Prompts(made)


def unused_token(model: AdaptedModel, *prompts: Prompts) -> int:
    """A token id of the model that stands in no prompt and ends or pads none."""
    tokenizer = model.tokenizer
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    met = {token for rows in prompts for ids in encode(rows, tokenizer) for token in ids}
    for rows in prompts:
        met |= {token for row in rows for text in (row.answer, row.distractor) if text
                for token in continuation_ids(row, tokenizer, text)}  # fmt: skip
    free = next(
        (number for number in reversed(range(min(model.n_token_ids, len(tokenizer)))) if number not in met | special),
        None,
    )
    if free is None:
        raise UserError("The prompts use every token of the vocabulary, so none is free to stand for a soft prompt.")
    return free


@method(
    "train-soft-prompt",
    group="training",
    question="Can a few learned vectors in front of the prompt do the task on the frozen model?",
    kind="training",
    papers=("Preserving In-Context Learning ability in Large Language Model Fine-tuning",),
    cost="a forward and backward pass per batch and epoch on the frozen model",
    expands={"schedule": Schedule},
    example="--tokens 4 --epochs 1",
)
def train_soft_prompt(
    model: Any,
    prompts: Any,
    *,
    tokens: int = 8,
    also_read: Sequence[Any] = (),
    end: bool = False,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> SoftPrompt:
    """Learn ``tokens`` vectors that, read in front of each prompt, make the frozen model give the prompt's answer.

    The first stage of ProMoT (Wang et al. 2023). Vectors start at the embeddings of the prompts' own tokens, drawn by
    the schedule's seed, as Lester et al. (2021) found best.

    Args:
        model: The model; its weights stay as they are.
        prompts: Rows with answers.
        tokens: How many vectors.
        also_read: Other sets of prompts that will be read behind it, so that no placeholder stands in them.
        end: Whether the end-of-text token is part of an answer.
        schedule: How long and how fast; by default 5 epochs at 1e-2.

    Returns:
        A :class:`SoftPrompt`.

    Raises:
        UserError: A row has no answer, or the model has no tokenizer.
    """
    adapted, schedule = as_adapted(model), schedule or Schedule()
    rows = Prompts.of(prompts)
    if tokens < 1:
        raise UserError(f"A soft prompt of {tokens} vectors is none: give 1 or more.")
    examples = examples_of(rows, adapted.tokenizer, end=end)
    placeholder = unused_token(adapted, rows, *(Prompts.of(texts) for texts in also_read))
    before = with_placeholders(rows, adapted.tokenizer, placeholder, tokens)
    examples = [
        dataclasses.replace(example, prompt=list(row.input_ids or ()))
        for example, row in zip(examples, before, strict=True)
    ]
    learned = nn.Parameter(starting_vectors(adapted, rows, tokens, schedule.seed))
    with reading(adapted, placeholder, learned):
        history = train_on_frozen(
            adapted, {"soft": learned}, examples, answer_loss,
            schedule=schedule, what="soft prompt", progress=progress or Silent(),
        )  # fmt: skip
    return SoftPrompt(learned.detach().cpu(), placeholder, history)


def starting_vectors(model: AdaptedModel, rows: Prompts, tokens: int, seed: int) -> Float[Tensor, "token d_model"]:
    """Embeddings of tokens drawn from the rows."""
    ids = [token for row in encode(rows, model.tokenizer) for token in row]
    generator = torch.Generator().manual_seed(seed)
    tokens_drawn = torch.tensor(ids)[torch.randint(len(ids), (tokens,), generator=generator)]
    with torch.no_grad(), model.active():
        embedding = model.inner.get_input_embeddings()
        return embedding(tokens_drawn.to(model.device)).detach().float().cpu().clone()
