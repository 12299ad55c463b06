"""Decoding of all requests in one vLLM engine: base and tuned, each row with a recipe of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from interventions.vllm_texts import check_held
from tunescope.serve.job import Job, TextOut
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.models.generation_settings import ends_of
from workbench.vllm.held_adapter import held_rank
from workbench.vllm.routing import check_sides
from workbench.vllm.running import VllmEngine, origin_for, sampling_of
from workbench.vllm.tap import Tap


@dataclass(eq=False)
class _Row:
    job: Job
    out: TextOut
    number: int
    made: int = 0


class VllmDecoding:
    """The rows of all sides that vLLM is writing, in the place of a :class:`tunescope.serve.decoding.Decoding`.

    Used by one thread. Sampling follows vLLM's own generators.
    """

    def __init__(self, engine: VllmEngine, sides: Mapping[str, AdaptedModel]) -> None:
        self._engine, self._numbers = engine, count()
        self._rows: dict[str, _Row] = {}
        self._closed = False
        self._tap = Tap(engine.runner(), next(iter(sides.values())).hub.template)
        self._stack = ExitStack()
        self._stack.enter_context(self._tap.on(engine.runner().get_model()))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def positions(self) -> int:
        """Tokens of a text at most."""
        return self._engine.positions

    def check(self, job: Job) -> None:
        """Raise :class:`UserError` for a recipe that vLLM cannot hold; the sentence says which part of it."""
        if job.recipe is not None:
            check_held(job.recipe, job.side)

    def join(self, job: Job, out: TextOut) -> None:
        """Give the engine a request; its prompt is read in the next steps."""
        row = _Row(job, out, next(self._numbers))
        sampling: dict[str, Any] = {"temperature": job.temperature, "top_p": job.top_p, "seed": job.seed}
        params = sampling_of(
            row.number, **(sampling if job.temperature > 0 else {}), max_tokens=job.new_tokens,
            stop_token_ids=ends_of(job.side.inner), output_kind=_deltas(),
        )  # fmt: skip
        if job.recipe is not None:
            self._tap.templates[row.number] = job.side.hub.template
            self._tap.add(row.number, job.recipe.row_hooks(job.side))
        out.put(job.batch.input_ids.cpu())
        name = str(row.number)
        self._rows[name] = row
        prompt = {"prompt_token_ids": job.batch.input_ids[0].tolist()}
        self._engine.llm.llm_engine.add_request(name, prompt, params, lora_request=self._engine.lora(job.side.role))

    def step(self) -> None:
        """One step of the engine: prompts that came are read, and every other row has one more token."""
        self._leave([name for name, row in self._rows.items() if row.out.stopped.is_set()], abort=True)
        if not self._rows:
            return
        for output in self._engine.llm.llm_engine.step():
            row, new = self._rows[output.request_id], output.outputs[0]
            for token in new.token_ids:
                row.out.put(torch.tensor([token]))
            row.made += len(new.token_ids)
            if output.finished:
                row.out.end()
                row.out.finish(row.made, [-1, *new.token_ids][-1])
                self._leave([output.request_id])

    def clear(self) -> list[TextOut]:
        """Let every row leave at once, unfinished; returns where their texts went."""
        outs = [row.out for row in self._rows.values()]
        self._leave(list(self._rows), abort=True)
        return outs

    def close(self) -> None:
        """End the engine."""
        self._closed = True
        self._stack.close()
        self._engine.close()

    def _leave(self, names: list[str], *, abort: bool = False) -> None:
        if abort and names and not self._closed:
            self._engine.llm.llm_engine.abort_request(names)
        for name in names:
            row = self._rows.pop(name)
            self._tap.hooks.pop(row.number, None)
            self._tap.templates.pop(row.number, None)
            if abort and row.out.stopped.is_set():
                row.out.end()
                row.out.finish(row.made, -1)


def check_served(sides: Mapping[str, AdaptedModel]) -> None:
    """Raise :class:`UserError` where vLLM cannot serve these models, before it is started."""
    origin = origin_for(sides)
    if origin.tuned is not None:
        held_rank(origin.tuned)
    check_sides(sides)


def opened(sides: Mapping[str, AdaptedModel], settings: Mapping[str, Any], rows: int) -> VllmDecoding:
    """vLLM on the files that the sides were loaded from, for at most so many rows at once.

    Raises:
        UserError: vLLM is missing, or cannot hold these models.
    """
    check_served(sides)
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if settings.get(name, 1) != 1:
            raise NotSupported(f"The server's vLLM is one process: leave {name} at 1, or use  --engine own.")
    dtype = str(next(iter(sides.values())).dtype).removeprefix("torch.")
    engine = VllmEngine(origin_for(sides), **{"dtype": dtype, "max_num_seqs": rows, **settings})
    return VllmDecoding(engine, sides)


def _deltas() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA
