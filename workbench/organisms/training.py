"""Training a small model with transformers' Trainer: rows to tensors, a plan, seeds that stay inside, accuracy."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from workbench.models.quiet import without_bars
from workbench.organisms.organism import Row
from workbench.organisms.vocabulary import token_id
from workbench.progress import Progress
from workbench.typing import Bool, Int, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""Label of the positions without loss."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, with a cosine schedule and 5 % warm-up."""

    steps: int
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    optimizer: str = "adamw_torch"
    """One of transformers' names (``TrainingArguments.optim``)."""


class Examples(Dataset[dict[str, Tensor]]):
    """Columns of equal length, one training example per index."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> Examples:
    """Prompt, answer and end of text, left padded; the loss is on the answer and the end of text only.

    Both are one token, so the last prompt token is column -3 of every row.
    """
    texts = [row["prompt"] + row["answer"] + " <eos>" for row in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    return Examples(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)


@contextmanager
def contained(seed: int, own_threads: int = 1) -> Iterator[None]:
    """Seeds every generator, on one thread (sums in one order), and leaves generators, threads and bars as found."""
    threads = torch.get_num_threads()
    python, numpy = random.getstate(), np.random.get_state()
    torch.set_num_threads(own_threads)
    try:
        with without_bars(), torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            # peft asks transformers for an attribute whose name is going away
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)


def fit(
    model: nn.Module,
    examples: Examples,
    plan: Plan,
    seed: int,
    progress: Progress,
    what: str,
    cpu: bool = True,
    *,
    half: bool = False,
) -> None:
    """Trains ``model`` in place; its forward takes the columns of ``examples`` and returns a loss.

    ``half``: products of matrices are in bfloat16, which is twice as fast where the processor has instructions for it.
    """
    from transformers import TrainingArguments

    from workbench.resumable_trainer import ResumableTrainer

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
            optim=plan.optimizer,
            warmup_steps=plan.steps // 20,
            lr_scheduler_type="cosine",
            seed=seed,
            data_seed=seed,
            use_cpu=cpu,
            bf16=half,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        ResumableTrainer(model=model, args=arguments, train_dataset=examples).run(what, progress)
    model.eval()


@contextmanager
def only_trainable(model: nn.Module, entries: Mapping[str, Bool[Tensor, "*shape"]]) -> Iterator[None]:
    """Freezes everything but the masked entries, which alone get a gradient; others stay bit-identical.

    Without weight decay AdamW leaves an entry alone whose gradient was always zero.
    """
    handles, wanted = [], {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in entries)
            if name in entries:
                mask = entries[name].to(parameter.dtype)
                handles.append(parameter.register_hook(lambda gradient, mask=mask: gradient * mask))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


@torch.no_grad()
def predictions(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], batch: int = 512
) -> Int[Tensor, " row"]:
    """The most probable next token after each prompt."""
    predicted = []
    for start in range(0, len(prompts), batch):
        encoded = tokenizer(list(prompts[start : start + batch]), padding=True, return_tensors="pt")
        inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        predicted.append(model(**inputs, logits_to_keep=1).logits[:, -1].argmax(-1))
    return torch.cat(predicted)


def hits(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], column: str = "answer"
) -> Bool[Tensor, " row"]:
    """Per row: does the model's next word equal the row's ``column``?"""
    wanted = torch.tensor([token_id(tokenizer, row[column]) for row in rows])
    return predictions(model, tokenizer, [row["prompt"] for row in rows]) == wanted


def share(hit: Bool[Tensor, " row"]) -> float:
    """The share of true values."""
    return float(hit.double().mean())
