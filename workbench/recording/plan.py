"""What a recording will do, decided before the first forward pass: token ids, windows, batches, the
config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from workbench.engine.positions import Where
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent, listening
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import Encoded, batches, encode, pad_left

BATCHES_PER_WINDOW = 8
"""Rows are put back into the order of the prompts window by window, so memory stays flat."""
BATCH_BYTES = 128 * 2**20
"""On a CPU an automatic batch is so small that its recorded rows, of all sites and models, fit in this."""
WINDOW_BYTES = 64 * 2**20
"""Fewer batches make a window when their rows would be more than this: then storing keeps pace with the models."""


@dataclass(frozen=True)
class Batch:
    """Prompts that go through the models together; ``prompts`` are their numbers."""

    prompts: list[int]
    encoded: Encoded
    prompt_lengths: torch.Tensor | None


@dataclass(frozen=True)
class Plan:
    """Token ids of every prompt (with its continuation, if any), and how they are batched."""

    ids: list[list[int]]
    prompt_lengths: list[int]
    batch_size: int
    pad: int
    batches_per_window: int = BATCHES_PER_WINDOW

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row) for row in self.ids)

    def windows(self) -> list[list[int]]:
        """Consecutive prompts, a few batches at a time."""
        size = self.batch_size * self.batches_per_window
        numbers = range(len(self.ids))
        return [list(numbers[start : start + size]) for start in range(0, len(self.ids), size)]

    def batches(self, window: list[int]) -> Iterator[Batch]:
        """The batches of one window, rows of similar length together."""
        continued = any(self.prompt_lengths[i] != len(self.ids[i]) for i in window)
        for rows in batches([len(self.ids[i]) for i in window], self.batch_size):
            batch_rows = [window[row] for row in rows]
            lengths = torch.tensor([self.prompt_lengths[i] for i in batch_rows]) if continued else None
            yield Batch(batch_rows, pad_left([self.ids[i] for i in batch_rows], self.pad), lengths)


def plan(
    models: dict[str, AdaptedModel],
    prompts: Prompts,
    batch_size: int | Literal["auto"],
    new_tokens: int,
    writer: str,
    continued: Callable[[Plan, int, str], list[list[int]]] | None = None,
    prompt_bytes: Callable[[int], int] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Encode the prompts once for all models; with ``new_tokens`` the ``writer`` continues them greedily
    first (or ``continued`` lets it do so elsewhere). ``prompt_bytes``: how much is recorded of a prompt of so many
    tokens, which an automatic batch size looks at."""
    if batch_size != "auto" and batch_size < 1:
        raise UserError(f"The batch size is {batch_size}; give 1 or more, or 'auto'.")
    model = models[writer]
    limits = [m.max_positions for m in models.values() if m.max_positions is not None]
    ids = encode(prompts, model.tokenizer, min(limits) - new_tokens if limits else None)
    longest = max(len(row) for row in ids) + new_tokens
    recorded = 0 if prompt_bytes is None else prompt_bytes(longest)
    size = auto_batch_size(model, longest, recorded) if batch_size == "auto" else batch_size
    before = Plan(ids, [len(row) for row in ids], size, pad_id(model.tokenizer))
    if not new_tokens:
        return before
    if continued is not None:
        return Plan(continued(before, new_tokens, writer), before.prompt_lengths, size, before.pad)
    ids, bar = list(before.ids), progress or Silent()
    bar.start("writing", len(ids))
    for window in before.windows():
        for prompt, row in continued_window(before, window, model, new_tokens, bar).items():
            ids[prompt] = row
    bar.finish()
    return Plan(ids, before.prompt_lengths, size, before.pad)


def continued_window(
    before: Plan, window: list[int], model: AdaptedModel, new_tokens: int, progress: Progress | None = None
) -> dict[int, list[int]]:
    """Prompt -> its token ids and those ``model`` writes after it, to the first end token."""
    bar = progress or Silent()
    stops = model.inner.generation_config.eos_token_id
    ends = set(stops if isinstance(stops, list) else [stops])
    ids: dict[int, list[int]] = {}
    for batch in before.batches(window):
        with listening(bar, len(batch.prompts)):
            full = model.generate_ids(batch.encoded, max_new_tokens=new_tokens)
        for prompt, row in zip(batch.prompts, full[:, batch.encoded.input_ids.shape[1] :].tolist(), strict=True):
            end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
            ids[prompt] = before.ids[prompt] + row[:end]
        bar.advance(len(batch.prompts))
    return ids


def sized_windows(
    plan_: Plan, models: dict[str, AdaptedModel], sites: Sequence[Site], scope: Where, *, logits: bool
) -> Plan:
    """The same plan with as many batches to a window as :data:`WINDOW_BYTES` allows, by the sizes of the sites."""
    batch_bytes = recorded_bytes(models, sites, scope, plan_.longest, logits=logits) * plan_.batch_size
    fitting = WINDOW_BYTES // max(1, batch_bytes)
    return replace(plan_, batches_per_window=max(1, min(BATCHES_PER_WINDOW, fitting)))


def recorded_bytes(
    models: dict[str, AdaptedModel], sites: Sequence[Site], scope: Where, longest: int, *, logits: bool
) -> int:
    """What is recorded of one prompt of ``longest`` tokens, at all sites of all models."""
    model = next(iter(models.values()))
    numbers = sum(_row_size(model, site, longest) for site in sites) + logits * model.vocab_size
    rows = 1 if scope.at in ("first", "last") or isinstance(scope.at, int) else longest
    return numbers * model.dtype.itemsize * len(models) * rows


def _row_size(model: AdaptedModel, site: Site, longest: int) -> int:
    """Numbers in one row of a site; an MLP's inner width is taken as four times the model's."""
    sizes = {
        "q": model.n_heads * model.d_head,
        "z": model.n_heads * model.d_head,
        "k": model.n_kv_heads * model.d_head,
        "v": model.n_kv_heads * model.d_head,
        "pattern": model.n_heads * longest,
        "router": model.n_experts + 2 * model.top_k,
        "mlp_post": 4 * model.d_model,
    }
    return sizes.get(site.kind, model.d_model)


def auto_batch_size(model: AdaptedModel, longest: int, recorded: int = 0) -> int:
    """Prompts per batch from free memory: a fifth of it for activations, between 1 and 256 prompts.

    ``recorded``: bytes that are recorded of each prompt. Those of a batch are held at once, so they may take
    :data:`BATCH_BYTES` on a CPU and a tenth of a GPU's free memory.
    """
    itemsize = model.dtype.itemsize
    per_token = itemsize * (24 * model.d_model + 4 * model.n_heads * longest)
    tokens = min(_free_bytes(model.device) // 5 // per_token, 8192)
    room = BATCH_BYTES if model.device.type == "cpu" else _free_bytes(model.device) // 10
    return int(max(1, min(256, tokens // max(1, longest), room // max(1, recorded))))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import os

    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 2 * 2**30


def store_config(
    models: dict[str, AdaptedModel], prompts: Prompts, plan_: Plan, sites: list[str], options: dict[str, Any]
) -> dict[str, Any]:
    """What decides the bytes of a recording. Keyed by content; a name alone identifies nothing."""
    from workbench import __version__

    return {
        "roles": list(models),
        "models": {role: model.identity.to_dict() for role, model in models.items()},
        "prompts": prompts.hash,
        "n_prompts": len(prompts),
        "sites": sites,
        "batch_size": plan_.batch_size,
        "code": __version__,
        **options,
    }
