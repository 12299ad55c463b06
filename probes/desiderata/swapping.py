"""The base prompt run with some heads' output taken, wholly or in part, from the source prompt at one position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from probes.patches.runs import TargetRun, record
from probes.paths.places import Head, Place, offsets_of
from probes.paths.sending import at_positions
from probes.replay import frozen
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts import Prompts
from workbench.prompts.answers import answer_token
from workbench.prompts.encode import batches, encode, pad_left
from workbench.typing import Bool, Float, Tensor


class Swaps:
    """One model and rows (base prompt, source = contrast, target = answer), ready to be run with any mask of heads."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, position: Place, *, batch_size: int, max_tokens: int | None = None
    ) -> None:
        self.model, self.rows, self.batch_size = model, rows, batch_size
        self.max_tokens = max_tokens or (512 if model.device.type == "cpu" else 16_384)
        self.passes, self.backward = 0.0, 0
        self.ids = encode(rows, model.tokenizer, model.max_positions)
        self.targets = torch.tensor([answer_token(row, model.tokenizer) for row in rows])
        self.at = torch.tensor(offsets_of(position, rows, [len(tokens) for tokens in self.ids]))
        self.sources = self._sources(position)
        self.shortcuts: bool | None = None

    def correct(self, masks: Sequence[Sequence[Head]], members: Sequence[int]) -> Bool[np.ndarray, "row mask"]:
        """Whether the target is the first choice on each of ``members`` with each set of heads taken from the
        source."""
        right = np.zeros((len(members), len(masks)), dtype=bool)
        keep = torch.ones(len(masks), self.model.n_layers, self.model.n_heads)
        for number, heads in enumerate(masks):
            for layer, head in heads:
                keep[number, layer, head] = 0.0
        for some in batches([len(self.ids[row]) for row in members], self.batch_size):
            rows = [members[place] for place in some]
            run = self._run(rows)
            width = self._copies(run)
            for start in range(0, len(masks), width):
                logits = self._swapped(run, rows, keep[start : start + width], grad=False)
                hits = logits.argmax(-1).cpu() == self.targets[rows][:, None]
                right[np.ix_(some, range(start, start + hits.shape[1]))] = hits.numpy()
            self.passes += run.passes
        return right

    def target_logits(
        self, members: Sequence[int], keep: Float[Tensor, "mask layer head"]
    ) -> Float[Tensor, "row mask"]:
        """The target's logit on each of ``members``, for each mask (1 = the base's own output), with gradients."""
        rows = list(members)
        run = self._run(rows)
        with frozen(self.model.hf):
            logits = self._swapped(run, rows, keep, grad=True)
        self.passes += run.passes
        self.backward += 1
        targets = self.targets[rows].to(logits.device)[:, None, None].expand(-1, len(keep), 1)
        return logits.gather(-1, targets).squeeze(-1)

    def _run(self, rows: list[int]) -> TargetRun:
        run = TargetRun(self.model, pad_left([self.ids[row] for row in rows], self._pad).to(self.model.device), {})
        if self.shortcuts is None:
            modes = [False] if run.batch.input_ids.shape[1] == 1 else [True, False]
            self.shortcuts = all(run.exact(last) for last in modes)
        run.shortcuts = self.shortcuts
        return run

    def _copies(self, run: TargetRun) -> int:
        rows = len(run.batch) if self._last else run.batch.input_ids.numel()
        return max(1, self.max_tokens // rows)

    @property
    def _last(self) -> bool:
        return bool((self.at == -1).all())

    @property
    def _pad(self) -> int:
        return pad_id(self.model.tokenizer)

    def _swapped(
        self, run: TargetRun, rows: list[int], keep: Float[Tensor, "mask layer head"], *, grad: bool
    ) -> Float[Tensor, "row mask vocab"]:
        taken = (keep.detach() != 1).any(0).any(-1) | keep.requires_grad
        layers = torch.nonzero(taken).flatten().tolist()
        hooks = [SiteHook(Site("z", layer), self._edit(rows, layer, keep[:, layer]), edit=True) for layer in layers]
        start = min(layers, default=self.model.n_layers - 1)
        return run.replay(len(keep), hooks, start, last_only=self._last, known_z=True, grad=grad)

    def _edit(
        self, rows: list[int], layer: int, keep: Float[Tensor, "mask head"]
    ) -> Callable[[Tensor, ForwardContext], Tensor]:
        theirs, places = self.sources[rows, layer], self.at[rows]

        def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
            new = value.unflatten(0, (-1, len(keep))).clone()
            at = (torch.zeros_like(places) if value.shape[1] == 1 else places).to(value.device)
            index = torch.arange(len(new), device=value.device)
            w = keep.to(value)[None, :, :, None]
            new[index, :, at] = w * new[index, :, at] + (1 - w) * theirs.to(value)[:, None]
            return new.flatten(0, 1)

        return edit

    def _sources(self, position: Place) -> Float[Tensor, "row layer head d_head"]:
        """The heads' output in the source prompts, at their own position."""
        model, contrasts = self.model, self.rows.contrasts
        ids = encode(contrasts, model.tokenizer, model.max_positions)
        there = torch.tensor(offsets_of(position, self.rows, [len(tokens) for tokens in ids], of_contrast=True))
        sites = [Site("z", layer) for layer in range(model.n_layers)]
        sources = torch.zeros(len(ids), model.n_layers, model.n_heads, model.d_head, dtype=model.dtype)
        for some in batches([len(tokens) for tokens in ids], self.batch_size):
            batch = pad_left([ids[row] for row in some], self._pad).to(model.device)
            values, _ = record(model, batch, sites)
            sources[some] = torch.stack([at_positions(values[site], there[some]).cpu() for site in sites], dim=1)
            self.passes += 1
        return sources
