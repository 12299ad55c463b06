"""One recorded site of both models as rows for a dictionary, read in pieces so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from probes.resampling import row_clusters
from workbench.argument_checks import check_recording
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.recording.recording import Recording
from workbench.recording.sink_rows import Tokens, averaged_rows, massive_rows
from workbench.typing import Float, Int, Tensor

Kind = Literal["crosscoder", "difference", "transcoder"]
BLOCK = 64
"""Neighbouring rows that are read together; blocks are read in random order."""
BUFFERED = 8
"""Batches that are held and mixed at once."""
HELD_OUT = 5
"""Every fifth prompt (or group) is kept for scoring."""


@dataclass(frozen=True)
class SiteRows:
    """The rows of one residual site: which are trained on, and which are held out.

    A row of a crosscoder is [base; tuned] side by side, one of a difference dictionary is tuned - base; a transcoder
    reads the base's row and writes tuned - base.
    """

    base: Any
    tuned: Any
    site: Site
    kind: Kind
    train: Int[np.ndarray, " train_row"]
    test: Int[np.ndarray, " test_row"]
    prompt: Int[np.ndarray, " every_row"]
    cluster: Int[np.ndarray, " every_row"]
    tokens: str

    @classmethod
    def of(cls, recording: Recording, kind: Kind, layer: int | None, tokens: Tokens, seed: int) -> SiteRows:
        """Raises :class:`UserError` without both models, a residual site, or five prompts."""
        site = _site(recording, layer)
        averaged = averaged_rows(recording.index, tokens, massive_rows(recording))
        cluster = row_clusters(recording.index)
        names = np.unique(cluster)
        if len(names) < HELD_OUT:
            raise UserError(
                f"{len(names)} prompts (or groups) cannot be parted to train a dictionary and to score it: record at "
                f"least {HELD_OUT}."
            )
        held_out = np.random.default_rng(seed).permutation(names)[: len(names) // HELD_OUT]
        tested, places = np.isin(cluster, held_out), np.flatnonzero(averaged.rows)
        return cls(
            recording["base"][site.name], recording["tuned"][site.name], site, kind,
            places[~tested[places]], places[tested[places]], recording.index["prompt"].to_numpy(), cluster,
            averaged.text,
        )  # fmt: skip

    @property
    def d_model(self) -> int:
        return int(self.base.shape[-1])

    def sides(self, rows: Int[np.ndarray, " row"]) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row d"]]:
        """Both models' activations of these rows, in float32."""
        numbers = torch.from_numpy(np.ascontiguousarray(rows))
        return self.base[numbers].float(), self.tuned[numbers].float()

    def pair(self, rows: Int[np.ndarray, " row"]) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
        """What the encoder reads of these rows, and what the decoder has to write."""
        base, tuned = self.sides(rows)
        if self.kind == "crosscoder":
            both = torch.cat([base, tuned], dim=-1)
            return both, both
        change = tuned - base
        return (base, change) if self.kind == "transcoder" else (change, change)

    def shuffled(self, batch_size: int, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches of one epoch: blocks in random order, rows mixed within a buffer of several batches."""
        blocks = [self.train[start : start + BLOCK] for start in range(0, len(self.train), BLOCK)]
        per_buffer = max(1, BUFFERED * batch_size // BLOCK)
        order = generator.permutation(len(blocks))
        for start in range(0, len(order), per_buffer):
            rows = np.concatenate([blocks[number] for number in order[start : start + per_buffer]])
            inputs, wanted = self.pair(np.sort(rows))
            mixed = torch.from_numpy(generator.permutation(len(rows)))
            for part in mixed.split(batch_size):
                yield inputs[part], wanted[part]

    def chunks(self, rows: Int[np.ndarray, " row"], size: int = 1024) -> Iterator[Int[np.ndarray, " part"]]:
        """``rows`` in their order, in parts that fit in memory."""
        return (rows[start : start + size] for start in range(0, len(rows), size))

    @cached_property
    def sample(self) -> Int[np.ndarray, " row"]:
        """Up to 4,096 training rows, evenly spread."""
        step = max(1, len(self.train) // 4096)
        return self.train[::step][:4096]


def _site(recording: Recording, layer: int | None) -> Site:
    check_recording(recording)
    if not {"base", "tuned"} <= set(recording.roles) or recording.moments:
        raise UserError(
            "A dictionary of tuning needs the rows of base and tuned side by side: record a pair with rows."
        )
    sites = [site for site in map(Site.parse, recording.sites) if site.kind in ("resid_pre", "resid_mid", "resid_post")]
    sites = [site for site in sites if layer is None or site.layer == layer]
    if not sites:
        raise UserError(
            f"A dictionary needs a residual site{'' if layer is None else f' of layer {layer}'}, and the recording has "
            f"{', '.join(recording.sites)}: record resid_post of the layer."
        )
    return sites[len(sites) // 2]
