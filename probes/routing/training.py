"""Training a router over frozen adapters, by each paper's own rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import interventions as iv
from interventions.adapter_routing import Rule
from probes.replay import frozen
from workbench.behaviour.continuations import continuations_of
from workbench.behaviour.subject import Subject
from workbench.engine.families import submodule
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode, pad_left
from workbench.typing import Tensor

SPLITS = 4
"""Heads of multi-head adapter routing."""


@dataclass(frozen=True)
class Fitting:
    """How long and how fast a router is trained."""

    rule: Rule
    top_k: int
    steps: int
    lr: float
    batch_size: int
    seed: int


def trained_routers(
    model: AdaptedModel, bank: dict[str, Any], rows: Prompts, fitting: Fitting
) -> dict[str, iv.AdapterRouting]:
    """Label -> its router. Only multi-head routing has one per label (its gates are a task's); others share one.

    PHATGOOSE trains each adapter's gate alone, on that adapter's rows, with a sigmoid; MeteoRA, SMoRA and the soft
    mixture train all gates on all rows, by the answers' likelihood and, as MeteoRA does, by which adapter a row is of.
    """
    names = bank["names"]
    labels = [str(row.label) for row in rows]
    if odd := [label for label in labels if label not in names]:
        raise UserError(
            f"Rows are labelled by the name of their adapter ({', '.join(names)}), and one says {odd[0]!r}."
        )
    data = _Data(model, rows, [names.index(label) for label in labels])
    if fitting.rule == "even":
        return dict.fromkeys(names, iv.AdapterRouting(**bank, rule="even"))
    if fitting.rule == "phatgoose":
        return dict.fromkeys(names, _each_alone(model, bank, data, fitting))
    if fitting.rule == "mhr":
        return {name: _task(model, bank, data, fitting, place) for place, name in enumerate(names)}
    start = iv.AdapterRouting(**bank, gates=_gates(bank, fitting), rule=fitting.rule, top_k=fitting.top_k)
    return dict.fromkeys(names, _fitted(model, start, data, fitting, range(len(rows)), classify=True))


def _gates(bank: dict[str, Any], fitting: Fitting, *, size: float = 1e-3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(fitting.seed)
    made = {}
    for path, down in bank["down"].items():
        count = down.shape[0] * (down.shape[1] if fitting.rule == "smora" else 1)
        shape = (SPLITS, count) if fitting.rule == "mhr" else (count, down.shape[2])
        made[path] = torch.randn(shape, generator=generator) * size
    return made


def random_router(bank: dict[str, Any], fitting: Fitting) -> iv.AdapterRouting:
    """The control: gates that no one trained, of the usual size of trained ones."""
    size = 3.0 if fitting.rule == "mhr" else 0.3
    gates = {} if fitting.rule == "even" else _gates(bank, replace(fitting, seed=fitting.seed + 1), size=size)
    return iv.AdapterRouting(**bank, gates=gates, rule=fitting.rule, top_k=fitting.top_k)


def _each_alone(model: AdaptedModel, bank: dict[str, Any], data: _Data, fitting: Fitting) -> iv.AdapterRouting:
    gates = {path: torch.zeros(down.shape[0], down.shape[2]) for path, down in bank["down"].items()}
    for place, name in enumerate(bank["names"]):
        own: dict[str, Any] = {
            "names": [name], "down": {path: down[place : place + 1] for path, down in bank["down"].items()},
            "up": {path: weight[place : place + 1] for path, weight in bank["up"].items()},
        }  # fmt: skip
        start = iv.AdapterRouting(**own, gates=_gates(own, fitting), rule="sigmoid")
        members = [number for number, label in enumerate(data.labels) if label == place]
        if not members:
            raise UserError(f"No row of the training half is labelled {name!r}: its gate cannot be trained.")
        routing = _fitted(model, start, data, fitting, members, classify=False)
        for path, gate in routing.gates.items():
            gates[path][place] = gate[0]
    return iv.AdapterRouting(**bank, gates=gates, rule="phatgoose", top_k=fitting.top_k)


def _task(model: AdaptedModel, bank: dict[str, Any], data: _Data, fitting: Fitting, place: int) -> iv.AdapterRouting:
    start = iv.AdapterRouting(**bank, gates=_gates(bank, fitting), rule="mhr")
    members = [number for number, label in enumerate(data.labels) if label == place]
    if not members:
        raise UserError(f"No row of the training half is labelled {bank['names'][place]!r}: its task has no data.")
    return _fitted(model, start, data, fitting, members, classify=False)


def _fitted(
    model: AdaptedModel, start: iv.AdapterRouting, data: _Data, fitting: Fitting, members: Sequence[int], *,
    classify: bool,
) -> iv.AdapterRouting:  # fmt: skip
    gates = {path: gate.clone().requires_grad_() for path, gate in start.gates.items()}
    router = replace(start, gates=gates)
    optimiser = torch.optim.Adam(list(gates.values()), lr=fitting.lr)
    rng = np.random.default_rng(fitting.seed)
    with frozen(model.hf), torch.enable_grad():
        for _ in range(fitting.steps):
            rows = rng.choice(np.asarray(members), size=min(fitting.batch_size, len(members)), replace=False)
            loss = data.loss(router, rows.tolist(), classify=classify)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return replace(start, gates={path: gate.detach() for path, gate in gates.items()})


class _Data:
    """Rows with answers, and the loss of a router on some of them."""

    def __init__(self, model: AdaptedModel, rows: Prompts, labels: list[int]) -> None:
        self.model, self.labels = model, labels
        ids = encode(rows, model.tokenizer, model.max_positions)
        self.answers = continuations_of(rows, Subject("training", model), "answer")
        self.rows = [[*prompt, *answer] for prompt, answer in zip(ids, self.answers, strict=True)]

    def loss(self, router: iv.AdapterRouting, members: list[int], *, classify: bool) -> Tensor:
        """Cross entropy of the answers, and of each token's adapter where rows tell it."""
        batch = pad_left([self.rows[member] for member in members], pad_id(self.model.tokenizer)).to(self.model.device)
        inputs: dict[str, Tensor] = {}
        handles = [] if not classify else [
            submodule(self.model.inner, path).register_forward_pre_hook(
                lambda _module, args, path=path: inputs.__setitem__(path, args[0].detach())
            )
            for path in router.down
        ]  # fmt: skip
        try:
            with iv.Recipe([router]).applied(self.model):
                logits = self.model.forward(batch, grad=True)
        finally:
            for handle in handles:
                handle.remove()
        assert logits is not None
        size = max(len(self.answers[member]) for member in members)
        targets = batch.input_ids[:, -size:].clone()
        for row, member in enumerate(members):
            targets[row, : size - len(self.answers[member])] = -100
        said = logits[:, -size - 1 : -1].float()
        total = torch.nn.functional.cross_entropy(said.flatten(0, 1), targets.flatten(), ignore_index=-100)
        return total + self._classified(router, inputs, members) if classify else total

    def _classified(self, router: iv.AdapterRouting, inputs: dict[str, Tensor], members: list[int]) -> Tensor:
        wanted = torch.tensor([self.labels[member] for member in members])
        losses = []
        for path, x in inputs.items():
            open_ = replace(router, rule="soft") if router.rule != "smora" else replace(router, top_k=10**6)
            shares = open_.by_adapter(path, x.view(len(members), -1, x.shape[-1])).clamp(min=1e-9).log()
            picked = shares.gather(-1, wanted[:, None, None].expand(-1, shares.shape[1], 1).to(shares.device))
            losses.append(-picked.mean())
        return torch.stack(losses).mean()
