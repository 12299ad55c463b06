"""Collects, tensor by tensor, what the tables need: sums of squares by module, head and expert, and spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from probes.weights.factors import factor_change, factor_figures, product_ranks
from probes.weights.measure import Sums, compare, gaussian_ranks
from probes.weights.naming import Layout, Place
from probes.weights.spectrum import Spectrum, effective_rank, factored_spectrum, spectrum
from probes.weights.stacks import Stacks
from probes.weights.stored_adapter import Factors
from workbench.typing import Float, Tensor


@dataclass
class Collector:
    """Rows of the tables so far; ``k`` leading singular values, of which ``n_directions`` directions are kept."""

    layout: Layout
    stacks: Stacks = field(default_factory=Stacks)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """By stack, where a stack has another layout than ``layout``."""
    k: int = 16
    n_directions: int = 4
    exact: bool | None = None
    modules: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, Any]] = field(default_factory=list)
    factors: list[dict[str, Any]] = field(default_factory=list)
    directions: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, base: Tensor, tuned: Tensor) -> None:
        """One tensor of any shape: a vector, a matrix, or one matrix (or vector) per expert."""
        place = self.stacks.place(name)
        base, tuned = (self._layout_of(name).oriented(place.module, tensor) for tensor in (base, tuned))
        if "experts" in place.module and base.ndim >= 2 and place.expert is None and self._fused(name, base):
            for expert in range(base.shape[0]):
                inside = Place(place.layer, place.module, expert)
                self._add_matrix(f"{name}[{expert}]", inside, base[expert], tuned[expert])
        else:
            self._add_matrix(name, place, base, tuned)

    def _layout_of(self, name: str) -> Layout:
        return self.layouts.get(self.stacks.stack_of(name), self.layout)

    def _fused(self, name: str, tensor: Tensor) -> bool:
        return tensor.ndim == 3 or name.endswith("bias")

    def _add_matrix(self, name: str, place: Place, base: Tensor, tuned: Tensor) -> None:
        is_vector = base.ndim < 2
        shape = (-1, 1) if is_vector else (base.shape[0], -1)
        base, tuned = base.reshape(shape), tuned.reshape(shape)
        by_column = self._layout_of(name).is_output(place.module)
        change = compare(base, tuned, by_column=by_column)
        decomposition = spectrum(change.delta, self.k, exact=self.exact) if change.changed and not is_vector else None
        if decomposition is not None:
            self._keep(name, decomposition, sides=place.expert is None)
        ranks = gaussian_ranks(*change.delta.shape) if decomposition is not None else (math.nan, math.nan)
        self._module_row(name, place, change.sums, base.numel(), decomposition, ranks)
        self.modules[-1] |= {"changed": change.changed / max(base.numel(), 1), "matrix": not is_vector}
        self._add_heads(name, place, change.sums, change.delta, columns=base.shape[1], rows=base.shape[0])

    def add_factors(self, name: str, base: Tensor | None, change: Factors) -> None:
        """A LoRA: nothing larger than its factors, and one chunk of the base's weight, is held.

        Factors that hold NaN or infinite entries have no spectrum: their product is read as any other weight.
        """
        if base is not None and not (change.up.isfinite().all() and change.down.isfinite().all()):
            product = (change.up @ change.down).to(base.device)
            turned = self._layout_of(name).turned(self.stacks.place(name).module, base.ndim)
            self.add(name, base.float(), base.float() + (product.mT if turned else product))
            return
        place, layout = self.stacks.place(name), self._layout_of(name)
        weight = layout.oriented(place.module, base) if base is not None else None
        sums, reduced = factor_change(change, weight, by_column=layout.is_output(place.module))
        decomposition = factored_spectrum(change.up, change.down, self.k)
        self._keep(name, decomposition, sides=True)
        rows, columns = change.up.shape[0], change.down.shape[1]
        ranks = product_ranks(rows, change.down.shape[0], columns)
        self._module_row(name, place, sums, rows * columns, decomposition, ranks)
        self.modules[-1] |= {"changed": float(float(sums.change.sum()) > 0), "matrix": True}
        self.factors.append({"layer": place.layer, "module": place.module, **factor_figures(change)})
        self._add_heads(name, place, sums, reduced, columns=columns, rows=rows)

    def _keep(self, name: str, decomposition: Spectrum, *, sides: bool) -> None:
        self.directions[f"{name}/values"] = decomposition.values.cpu()
        if not sides:  # a model has thousands of experts
            return
        self.directions[f"{name}/left"] = decomposition.left[:, : self.n_directions].contiguous().cpu()
        self.directions[f"{name}/right"] = decomposition.right[:, : self.n_directions].contiguous().cpu()

    def _module_row(
        self,
        name: str,
        place: Place,
        sums: Sums,
        size: int,
        decomposition: Spectrum | None,
        control: tuple[float, float],
    ) -> None:
        nothing = float(sums.change.sum()) == 0
        shown = {
            "sigma_1": float(decomposition.values[0]) if decomposition else 0.0 if nothing else math.nan,
            "stable_rank": decomposition.stable_rank if decomposition else math.nan,
            "effective_rank": decomposition.effective_rank if decomposition else math.nan,
            "effective_low": decomposition.effective_low if decomposition else math.nan,
            "effective_high": decomposition.effective_high if decomposition else math.nan,
            "decay": decomposition.decay if decomposition else math.nan,
            "stable_rank_control": control[0],
            "effective_rank_control": control[1],
        }
        where = {"stack": self.stacks.stack_of(name), "layer": place.layer, "module": place.module}
        where |= {"expert": place.expert, "name": name}
        self.modules.append({**where, **_totals(sums, size), **shown})

    def _add_heads(self, name: str, place: Place, sums: Sums, delta: Tensor, *, columns: int, rows: int) -> None:
        """Rows for the heads inside a q, k, v or output weight (or bias), if this is one."""
        if place.layer is None:
            return
        stack, layout = self.stacks.stack_of(name), self._layout_of(name)
        split: Callable[[str, Tensor], dict[str, Tensor]] = layout.split
        if layout.is_output(place.module):
            count = layout.n_heads
            width, other = columns // count, rows

            def split(_: str, units: Tensor) -> dict[str, Tensor]:
                return {"o": units.reshape(count, width, *units.shape[1:])}

            delta = delta.T
        else:
            other = columns
        squares = [split(place.module, part) for part in (sums.change, sums.base, sums.product)]
        for part, blocks in split(place.module, delta).items():
            ranks = _block_ranks(blocks)
            for head in range(len(blocks)):
                cell = Sums(*(square[part][head] for square in squares))
                self.heads.append(
                    {
                        "stack": stack,
                        "layer": place.layer,
                        "head": head,
                        "module": part,
                        **_totals(cell, blocks.shape[1] * other),
                        **{key: float(values[head]) for key, values in ranks.items()},
                    }
                )


def _totals(sums: Sums, size: int) -> dict[str, Any]:
    return {
        "n": size,
        "change2": float(sums.change.sum()),
        "base2": float(sums.base.sum()),
        "product": float(sums.product.sum()),
    }


def _block_ranks(blocks: Float[Tensor, "head row column"]) -> dict[str, Tensor]:
    """Largest singular value, stable and effective rank of each head's block, from its smaller Gram matrix.

    NaN for a block that holds NaN or infinite entries.
    """
    finite = blocks.isfinite().flatten(1).all(1)
    if not finite.all():
        ranks = _block_ranks(torch.where(finite[:, None, None], blocks, torch.zeros_like(blocks)))
        return {name: values.masked_fill(~finite.to(values.device), math.nan) for name, values in ranks.items()}
    wide = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT
    squares = torch.linalg.eigvalsh((wide @ wide.mT).double()).clamp_min(0)
    first = squares[:, -1]
    stable = torch.where(first > 0, squares.sum(1) / first.clamp_min(1e-300), 0.0)
    effective = torch.tensor([effective_rank(square.sqrt()) for square in squares])
    return {"sigma_1": first.sqrt(), "stable_rank": stable, "effective_rank": effective}
