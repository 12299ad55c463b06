"""A training inside a run goes on where it was stopped, to the same bits: transformers' Trainer with checkpoints of
ours.

A checkpoint is one sealed ``.safetensors`` file beside the finished batches of the run (no pickle, as Trainer's own
are): the weights that are trained, the optimizer's state, the schedule, the random states and the history. One is
written when the training is done, and before that as often as costs a twentieth of its time at most.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from workbench import finished_batches, result_file
from workbench.errors import UserError
from workbench.files import DamagedWarning
from workbench.finished_batches import PassCounter
from workbench.progress import Progress
from workbench.typing import Tensor

KIND = "unfinished training"
_SHARE = 0.05
"""Of the time of a training, what writing its checkpoints may cost."""
_ROOM = 4
"""So many times the trained weights must be free on the disk: weights, two moments, and the file before."""
_MOST = 2**34
"""Bytes that the checkpoints of a run's other trainings may take; beyond, a run with many trainings keeps no more."""
_SETTINGS = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "warmup_steps", "weight_decay", "lr_scheduler_type", "optim", "seed", "bf16",
)  # fmt: skip


@runtime_checkable
class Beside(Protocol):
    """What a training holds beside its model, optimizer and schedule."""

    def state(self) -> dict[str, Any]:
        """All of it, as numbers, text and tensors."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer; inside a run (``workbench.finished_batches.resumable``) a killed training goes on.

    Batches that a collator draws from a generator of its own cannot be drawn again, so those trainings keep nothing.
    """

    def __init__(self, *, beside: Beside | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._beside = beside
        self._place: Path | None = None
        self._held: dict[str, Any] = {}
        self._counters: list[PassCounter] = []
        self._before: list[int] = []
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def run(self, what: str, progress: Progress) -> tuple[dict[str, float], ...]:
        """Train to the end; the history, one entry per logged step.

        Args:
            what: Which of a run's trainings this is, also for people.
            progress: Told of every step, those of an earlier try at once.
        """
        self.add_callback(_Reporting(progress))
        progress.start(what, self._steps())
        try:
            if getattr(self.data_collator, "generator", None) is None:
                self._place = finished_batches.workplace("training", [what, self._settings()])
            self._resumed(progress)
        finally:
            progress.finish()
        return tuple(entry for entry in self.state.log_history if "loss" in entry)

    def _steps(self) -> int:
        arguments = self.args
        if arguments.max_steps > 0:
            return int(arguments.max_steps)
        per_epoch = max(1, -(-len(self.get_train_dataloader()) // arguments.gradient_accumulation_steps))
        return int(per_epoch * arguments.num_train_epochs)

    def _settings(self) -> list[Any]:
        return [str(getattr(self.args, name)) for name in _SETTINGS]

    def _resumed(self, progress: Progress) -> None:
        self._counters = finished_batches.counters()
        self._before = [counter.forward for counter in self._counters]
        self._held = {} if self._place is None else _read(self._place)
        if self._place is not None:
            self.add_callback(_Keeping(self))
        if not self._held:
            self.train()
            return
        folder = Path(self.args.output_dir)
        state = folder / TRAINER_STATE_NAME
        state.write_text(self._held["trainer"], encoding="utf-8")
        for counter, passes in zip(self._counters, self._held["passes"], strict=False):
            counter.forward += passes
        if not self._held["finished"]:
            self.train(resume_from_checkpoint=str(folder))
            return
        self._load_from_checkpoint()
        self.state = TrainerState.load_from_json(str(state))
        self._load_beside()
        self._load_rng_state()
        progress.advance(self.state.global_step)

    def _save_checkpoint(self, *_: Any, finished: bool = False) -> None:
        assert self._place is not None
        weights = self._trained()
        self._place.parent.mkdir(parents=True, exist_ok=True)
        others = sum(path.stat().st_size for path in self._place.parent.iterdir() if path != self._place)
        needed = _ROOM * sum(tensor.nbytes for tensor in weights.values())
        if others > _MOST or shutil.disk_usage(self._place.parent).free < needed:
            return
        content = {
            "finished": finished,
            "trainer": json.dumps(asdict(self.state)),
            "weights": weights,
            "optimizer": {} if finished else self.optimizer.state_dict(),
            "schedule": {} if finished else self.lr_scheduler.state_dict(),
            "random": _random_states(),
            "beside": {} if self._beside is None else self._beside.state(),
            "passes": [now.forward - before for now, before in zip(self._counters, self._before, strict=True)],
        }
        result_file.write(self._place, KIND, content)

    def _trained(self) -> dict[str, Tensor]:
        named = self.model.named_parameters(remove_duplicate=False)
        fixed = {name for name, parameter in named if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in fixed}

    @torch.no_grad()
    def _load_from_checkpoint(self, *_: Any) -> None:
        own = self._trained()
        for name, tensor in self._held["weights"].items():
            own[name].copy_(tensor)

    def _load_optimizer_and_scheduler(self, *_: Any) -> None:
        self.optimizer.load_state_dict(self._held["optimizer"])
        self.lr_scheduler.load_state_dict(self._held["schedule"])
        self._load_beside()

    def _load_beside(self) -> None:
        if self._beside is not None:
            self._beside.restore(self._held["beside"])

    def _load_scaler(self, *_: Any) -> None:
        """There is none: nothing is trained in float16."""

    def _load_rng_state(self, *_: Any) -> None:
        _set_random_states(self._held["random"])


class _Reporting(TrainerCallback):  # type: ignore[misc]
    """Tells a :class:`Progress` about every step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step:
            self._progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._progress.advance()


class _Keeping(TrainerCallback):  # type: ignore[misc]
    """Says when a checkpoint is written, and writes that of the end."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer
        self._cost, self._written = 0.0, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        now = time.monotonic()
        control.should_save = now - self._written >= max(finished_batches.SECONDS, self._cost / _SHARE)
        self._began = now

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._written = time.monotonic()
        self._cost = self._written - self._began

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._trainer._save_checkpoint(finished=True)


def _read(place: Path) -> dict[str, Any]:
    """The checkpoint of an earlier try, empty where there is none; a damaged one is left out with a warning."""
    if not place.is_file():
        return {}
    try:
        return result_file.read(place)[1]
    except (UserError, ValueError) as error:
        said = str(error).partition(";")[0]
        warnings.warn(f"{said}; the training begins anew.", DamagedWarning, stacklevel=2)
        return {}


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    python = random.getstate()
    return {
        "python": python, "numpy": (name, np.asarray(keys).astype(np.int64), *rest), "cpu": torch.get_rng_state(),
        "devices": devices,
    }  # fmt: skip


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.astype(np.uint32), *rest))
    torch.set_rng_state(states["cpu"])
    if states["devices"]:
        torch.cuda.set_rng_state_all(states["devices"])
