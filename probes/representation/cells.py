"""A recording as cells to probe: one row per prompt for every site, layer, head and place in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.recording.recording import Recording
from workbench.typing import Float, Int, Tensor

HEADED = ("z", "q", "k", "v")


@dataclass(frozen=True)
class PromptRows:
    """What the rows of a recording are: the recorded prompts, their groups, and which rows are whose."""

    prompts: Int[np.ndarray, " prompt"]
    """Numbers of the prompts."""
    clusters: Int[np.ndarray, " prompt"]
    index: Any
    rows: Int[np.ndarray, " row"]
    """Numbers of the recorded rows that count."""

    @classmethod
    def of(cls, recording: Recording, spans: Sequence[Any] | None = None) -> PromptRows:
        """All recorded rows, or of each prompt those inside its span of tokens (first, end), as
        :func:`probes.row_spans.row_spans` gives them.

        Raises :class:`UserError` for a recording of statistics, for one without both models, and for a prompt of which
        nothing inside its span was recorded.
        """
        if recording.moments:
            raise UserError('This recording kept statistics only: record with store="memory" or a folder.')
        if not {"base", "tuned"} <= set(recording.roles):
            raise UserError(
                f"The recording holds {', '.join(recording.roles)}; both models are compared here: record a pair."
            )
        index = recording.index
        prompts, first = np.unique(index["prompt"].to_numpy(), return_index=True)
        names = [
            f"prompt {prompt}" if group is None or group != group else f"group {group}"
            for prompt, group in zip(prompts, index["group"].to_numpy()[first], strict=True)
        ]
        rows = np.arange(len(index)) if spans is None else _inside(index, spans)
        if missing := np.setdiff1d(prompts, index["prompt"].to_numpy()[rows]).tolist():
            raise UserError(
                f'Of prompt {missing[0]} no token inside its span was recorded: record positions="all", or "prompt".'
            )
        return cls(prompts, np.unique(names, return_inverse=True)[1], index, rows)

    def labels(self, values: Sequence[Any] | None, column: str = "label") -> list[Any]:
        """One value per recorded prompt: ``values`` [prompt], or the recording's own column."""
        if values is not None:
            if len(values) <= self.prompts.max():
                raise UserError(
                    f"There are {len(values)} values for {self.prompts.max() + 1} prompts; give one for each prompt."
                )
            return [values[int(number)] for number in self.prompts]
        first = np.unique(self.index["prompt"].to_numpy(), return_index=True)[1]
        return list(self.index[column].to_numpy()[first])

    def places(self, by_position: bool) -> list[tuple[dict[str, int], Int[np.ndarray, " row"]]]:
        """Rows to average per prompt: all that count, or for each place from their end those which every prompt has."""
        if not by_position:
            return [({}, self.rows)]
        index = self.index.iloc[self.rows]
        from_end = (index["position"] - index.groupby("prompt")["position"].transform("max")).to_numpy() - 1
        places = []
        for place in np.unique(from_end)[::-1]:
            rows = self.rows[from_end == place]
            if len(np.unique(self.index["prompt"].to_numpy()[rows])) == len(self.prompts):
                places.append(({"position": int(place)}, rows))
        return places

    def averaged(
        self, values: Float[Tensor, "row ..."], rows: Int[np.ndarray, " chosen"]
    ) -> Float[Tensor, "prompt ..."]:
        """The mean over each prompt's chosen rows."""
        number = np.searchsorted(self.prompts, self.index["prompt"].to_numpy()[rows])
        states = values[torch.from_numpy(rows)].float()
        sums = states.new_zeros(len(self.prompts), *states.shape[1:]).index_add_(0, torch.from_numpy(number), states)
        counts = np.bincount(number, minlength=len(self.prompts))
        return sums / torch.from_numpy(counts).view(-1, *[1] * (states.ndim - 1)).to(sums)


def _inside(index: Any, spans: Sequence[Any]) -> Int[np.ndarray, " row"]:
    """Numbers of the rows inside their prompts' spans."""
    prompt, position = index["prompt"].to_numpy(), index["position"].to_numpy()
    if len(spans) <= prompt.max():
        raise UserError(f"There are {len(spans)} spans for {prompt.max() + 1} prompts: give one for each prompt.")
    ends = np.array([[int(first), int(end)] for first, end in spans])[prompt]
    return np.flatnonzero((position >= ends[:, 0]) & (position < ends[:, 1]))


def n_readings(recording: Recording, rows: PromptRows, by_position: bool = False) -> int:
    """How often :func:`cells_of` yields."""
    return sum(name.startswith("blocks.") for name in recording.sites) * len(rows.places(by_position))


def cells_of(
    recording: Recording, rows: PromptRows, by_position: bool = False
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Float[Tensor, "cell prompt d"]]]]:
    """Per site and place: what its cells are (one, or one per head), and both models' features."""
    for name in recording.sites:
        if not name.startswith("blocks."):
            continue
        site = Site.parse(name)
        for place, rows_there in rows.places(by_position):
            sides = {}
            for role in ("base", "tuned"):
                values = rows.averaged(recording[role][name][:], rows_there)
                sides[role] = values[None] if values.ndim == 2 else values.transpose(0, 1).contiguous()
            count = len(sides["base"])
            headed = {"head": 0} if site.kind in HEADED else {}
            yield [
                {"site": site.kind, "layer": site.layer, **({"head": n} if headed else {}), **place}
                for n in range(count)
            ], sides  # fmt: skip
