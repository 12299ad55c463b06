"""A training that is stopped goes on from its last checkpoint and ends in the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from tests.tiny import tiny_model
from workbench import finished_batches
from workbench.files import DamagedWarning
from workbench.finished_batches import resumable, scope
from workbench.organisms.training import Examples, contained
from workbench.progress import Silent
from workbench.resumable_trainer import ResumableTrainer
from workbench.typing import Tensor

ROWS = 10


class Killed(BaseException):
    """Stands for the end of the process: nothing that handles errors sees it."""


class KillAt(TrainerCallback):
    """Ends the training as the step begins that comes after ``step`` steps."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


class Noisy(nn.Module):
    """A model with dropout, which draws from the random state that a checkpoint has to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model("llama", num_hidden_layers=1)
        self.dropout = nn.Dropout(0.2)
        self.model.model.layers[0].mlp.register_forward_hook(lambda *given: self.dropout(given[-1]))
        self.model.lm_head.weight.requires_grad_(False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        return self.model(input_ids=input_ids, labels=labels)


class Steps(Silent):
    """Counts the steps that are told."""

    def __init__(self) -> None:
        self.count = 0

    def advance(self, by: int = 1) -> None:
        self.count += by


def rows() -> Examples:
    ids = torch.randint(4, 300, (ROWS, 8), generator=torch.Generator().manual_seed(0))
    return Examples(input_ids=ids, labels=ids)


def train(folder: Path, *, kill: int | None = None, progress: Any = None, **settings: Any) -> tuple[Noisy, Any]:
    model = Noisy()
    with contained(3):
        arguments = TrainingArguments(
            output_dir=str(folder / "scratch"), per_device_train_batch_size=3, learning_rate=1e-2, logging_steps=1,
            report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True, remove_unused_columns=False,
            dataloader_pin_memory=False, seed=3, **settings,
        )  # fmt: skip
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        trainer = ResumableTrainer(model=model, args=arguments, train_dataset=rows(), callbacks=[KillAt(kill)])
        history = trainer.run("test", progress or Silent())
        return model, (history, torch.rand(3))


def same(one: tuple[Noisy, Any], other: tuple[Noisy, Any]) -> None:
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name
    assert one[1][0] == other[1][0]
    assert torch.equal(one[1][1], other[1][1])  # what is drawn behind it


@pytest.mark.parametrize(
    ("kill", "settings"),
    [
        (2, {"num_train_epochs": 3}),
        (4, {"num_train_epochs": 3}),  # between two epochs
        (5, {"max_steps": 9}),
        (
            3,
            {"num_train_epochs": 4, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2},
        ),
    ],
)
def test_it_ends_in_the_same_bits(
    tmp_path: Path, kill: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished_batches, "SECONDS", 0.0)
    monkeypatch.setattr("workbench.resumable_trainer._SHARE", 1e9)
    whole = train(tmp_path / "whole", **settings)
    parts = tmp_path / "parts"
    with pytest.raises(Killed), resumable(parts), scope(lambda: "it"):
        train(tmp_path / "first", kill=kill, **settings)
    steps, seen = Steps(), []
    monkeypatch.setattr(ResumableTrainer, "training_step", _counted(seen))
    with resumable(parts), scope(lambda: "it"):
        again = train(tmp_path / "second", progress=steps, **settings)
    same(whole, again)
    assert steps.count == len(whole[1][0]) and 0 < len(seen) < len(whole[1][0]) * 2
    assert not parts.exists()


def _counted(seen: list[int]) -> Callable[..., Any]:
    plain = ResumableTrainer.training_step

    def step(self: Any, *given: Any, **more: Any) -> Any:
        seen.append(1)
        return plain(self, *given, **more)

    return step


def test_what_was_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the steps end within an epoch, behind which Trainer's own resuming would go on."""
    parts, whole = tmp_path / "parts", train(tmp_path / "whole", max_steps=5)
    with pytest.raises(Killed), resumable(parts), scope(lambda: "it"):
        train(tmp_path / "first", max_steps=5)
        raise Killed
    monkeypatch.setattr(ResumableTrainer, "training_step", None)
    with resumable(parts), scope(lambda: "it"):
        same(whole, train(tmp_path / "second", max_steps=5))


def test_other_settings_models_or_rows_begin_anew(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    with pytest.raises(Killed), resumable(parts), scope(lambda: "it"):
        train(tmp_path / "first", max_steps=4)
        raise Killed
    with resumable(parts), scope(lambda: "another"):
        assert len(train(tmp_path / "second", max_steps=4)[1][0]) == 4
        same(train(tmp_path / "third", max_steps=3), train(tmp_path / "fourth", max_steps=3))


def test_a_damaged_checkpoint_is_never_taken(tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", train(tmp_path / "whole", max_steps=4)
    with pytest.raises(Killed), resumable(parts), scope(lambda: "it"):
        train(tmp_path / "first", max_steps=4)
        raise Killed
    (file,) = (parts / "unfinished").iterdir()
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.warns(DamagedWarning, match="begins anew"), resumable(parts), scope(lambda: "it"):
        same(whole, train(tmp_path / "second", max_steps=4))


def test_outside_a_run_nothing_is_written(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        train(tmp_path, max_steps=2)
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]
