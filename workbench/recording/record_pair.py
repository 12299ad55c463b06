"""``record``: run both models on the same token ids and keep what passes at the sites asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from workbench.argument_checks import check_subject
from workbench.cluster.shipping import models_of
from workbench.cluster.splitting import current_team
from workbench.engine.positions import PositionSpec, Where, where
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.placement import check_executor
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.capture import Capture, Captured, all_finite
from workbench.recording.plan import Batch, Plan, plan, recorded_bytes, sized_windows, store_config
from workbench.recording.recording import NonFiniteWarning, Recording
from workbench.recording.row_index import RowIndex, Rows
from workbench.recording.row_order import in_order, row_order
from workbench.recording.sinks import MemorySink, Sink, StatisticsSink, StoreSink
from workbench.recording.store import SHARD_BYTES
from workbench.recording.two_sides import record_sides
from workbench.typing import Tensor
from workbench.vllm.routing import routed

if TYPE_CHECKING:
    from workbench.cluster.team import Team

BACKENDS = ("hooks", "nnsight", "ndif")
Store = Literal["memory"] | str | Path | None


def record(  # noqa: PLR0913 (the one public call; all but three by keyword)
    pair: ModelPair | AdaptedModel,
    prompts: Any,
    sites: str | Site | Sequence[str | Site],
    *,
    layers: Any = None,
    positions: PositionSpec | Where = "last",
    store: Store = "memory",
    batch_size: int | Literal["auto"] = "auto",
    dtype: torch.dtype | None = None,
    logits: bool = False,
    new_tokens: int = 0,
    covariance: bool = False,
    top: int = 0,
    shard_bytes: int = SHARD_BYTES,
    backend: str = "hooks",
    executor: str = "local",
    workers: int | None = None,
    engine_settings: Mapping[str, Any] | None = None,
    base_prompts: Any = None,
    progress: Progress | None = None,
) -> Recording:
    """Record activations of both models of a pair (or of one model) on the same token ids.

    ``prompts``: texts, chats or token ids in any form that :meth:`workbench.prompts.Prompts.of` reads.
    ``sites``: names such as "resid_post", "z", "router", "blocks.3.attn.hook_z"; ``layers`` narrows names
    without a layer (indices or fractions of depth). ``positions``: see :mod:`workbench.engine.positions`.
    ``store``: "memory" keeps rows in memory; a folder writes shards that survive a kill and resume; None
    keeps statistics only (float64 mean, variance; ``covariance`` and the ``top`` rows by norm on request), in
    memory that does not grow with the number of prompts. ``dtype``: of stored rows (default: the model's).
    ``logits``: also keep logits at the positions; otherwise the forward ends after the last site and skips
    the vocabulary projection. ``new_tokens``: the tuned model first continues each prompt greedily, and both
    models read prompt and continuation; ``index["phase"]`` tells them apart. ``shard_bytes``: size
    of a stored shard, and how much a killed run loses at most. ``backend``: "hooks", "nnsight" (the same sites read
    by traces) or "ndif" (traces run by the remote service; :mod:`workbench.recording.traced`).
    ``batch_size="auto"`` is chosen from free memory and from what is recorded of a prompt (sites x layers x tokens),
    and is halved where a GPU's runs out all the same. ``executor="ray"`` shares the prompts out over ``workers``
    processes of a Ray cluster, each with a whole pair (by default one per GPU, else per CPU); see
    :mod:`workbench.cluster.team`. ``executor="vllm"`` lets vLLM run base and LoRA in one engine (resid_post,
    attn_out, mlp_out; :mod:`workbench.recording.vllm_capture`); ``engine_settings`` go to it, such as
    ``{"max_model_len": 4096}``.

    ``base_prompts``: what the base reads instead, row for row the same questions (a plain text beside a chat, a prompt
    with demonstrations beside one without); the positions must then choose as many tokens of each row on both sides, as
    "last" does, and rows are kept in memory.

    Raises :class:`UserError` for unknown sites, positions or layers, prompts longer than the context, a
    folder that holds another recording, and a GPU whose memory runs out.
    """
    if base_prompts is not None:
        shared = {
            "sites": sites, "layers": layers, "positions": positions, "batch_size": batch_size, "dtype": dtype,
            "logits": logits, "backend": backend, "progress": progress,
        }  # fmt: skip
        apart = {"store": store != "memory", "new_tokens": new_tokens, "covariance": covariance, "top": top}
        refused = [name for name, is_set in apart.items() if is_set]
        return record_sides(record, pair, prompts, base_prompts, shared, refused)
    check_subject(pair, prompts)
    models = models_of(pair)
    rows = Prompts.of(prompts)
    first = next(iter(models.values()))
    expanded = first.expand(sites, layers) if sites else []
    if not expanded and not logits:
        raise UserError("Nothing to record: name at least one site, or ask for logits.")
    scope = where(positions)
    _check_executor(executor, workers, engine_settings, backend)
    make = _capturing(backend, models, tuple(expanded), new_tokens, executor)
    written: Callable[[Plan, int, str], list[list[int]]] | None = None
    if executor == "vllm":
        make, written = _by_vllm(models, expanded, logits=logits)
    options = _options(scope, dtype, logits, new_tokens)
    rows_per_batch = _stored_batch_size(store) if batch_size == "auto" else batch_size
    size: int | Literal["auto"] = "auto" if rows_per_batch is None else rows_per_batch
    names = [site.name for site in expanded] + (["logits"] if logits else [])
    engine = routed(models, "vllm" if executor == "vllm" else "local", engine_settings)
    with _team(executor, workers, pair, backend) as team, engine:
        elsewhere = written if team is None else partial(_continued_by, team, models)
        each = partial(recorded_bytes, models, expanded, scope, logits=logits)
        while True:
            plan_ = plan(models, rows, size, new_tokens, _writer(models), elsewhere, each, progress)
            plan_ = sized_windows(plan_, models, expanded, scope, logits=logits)
            capture = make(tuple(expanded), scope, dtype, plan_.longest, logits)
            config = store_config(models, rows, plan_, names, options)
            sink = _sink(store, config, shard_bytes, covariance=covariance, top=top)
            try:
                return _Job(models, rows, plan_, capture, progress or Silent()).run(sink, config, team)
            except torch.OutOfMemoryError as error:
                if rows_per_batch is not None or plan_.batch_size == 1:
                    raise _out_of_memory(plan_, store) from error
            sink.discard()  # outside of the handler, whose traceback holds what filled the memory
            size = plan_.batch_size // 2


def _sink(store: Store, config: dict[str, Any], shard_bytes: int, *, covariance: bool, top: int) -> Sink:
    if store == "memory":
        return MemorySink()
    if store is None:
        return StatisticsSink(covariance=covariance, top=top)
    return StoreSink(Path(store), config, shard_bytes)


def _out_of_memory(plan_: Plan, store: Store) -> UserError:
    begun = "" if store in (None, "memory") else " and another folder (a recording keeps the one it began with)"
    return UserError(
        f"The GPU's memory ran out at {plan_.batch_size} prompts of up to {plan_.longest} tokens at once: "
        f"give a smaller batch_size{begun}."
    )


def _check_executor(
    executor: str, workers: int | None, engine_settings: Mapping[str, Any] | None, backend: str
) -> None:
    """Raise :class:`UserError` for an executor that there is not, or options of another one."""
    check_executor(executor, workers)
    if engine_settings is not None and executor != "vllm":
        raise UserError('engine_settings are vLLM\'s: give executor="vllm" with them.')
    if executor == "vllm" and backend != "hooks":
        raise UserError(f'backend={backend!r} runs the models itself: leave out executor="vllm".')


def _team(
    executor: str, workers: int | None, subject: ModelPair | AdaptedModel, backend: str
) -> AbstractContextManager[Team | None]:
    """The processes that run the models, new ones or those of ``on_ray``; None for this one alone."""
    if executor == "ray":
        from workbench.cluster.team import team

        return team(subject, workers)
    usable = executor == "local" and backend == "hooks"
    return nullcontext(current_team(models_of(subject)) if usable else None)


def _continued_by(
    team: Team, models: Mapping[str, AdaptedModel], before: Plan, new_tokens: int, writer: str
) -> list[list[int]]:
    from workbench.recording.distributed import continued

    return continued(team, models[writer], before, new_tokens)


def _capturing(
    backend: str, models: dict[str, AdaptedModel], sites: tuple[Site, ...], new_tokens: int, executor: str
) -> Callable[..., Capture]:
    """The class that runs the models; refuses what this backend cannot record before anything is run."""
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    for model in models.values():
        if backend != "ndif" and executor != "vllm" and model.weightless:
            raise UserError(f'{model.name} was loaded without weights: only backend="ndif" can run it.')
    if backend == "hooks":
        return Capture
    from workbench.recording.traced import RemoteCapture, TracedCapture, check

    check(models, sites, remote=backend == "ndif", new_tokens=new_tokens)
    return RemoteCapture if backend == "ndif" else TracedCapture


def _by_vllm(
    models: dict[str, AdaptedModel], sites: Sequence[Site], *, logits: bool
) -> tuple[type[Capture], Callable[[Plan, int, str], list[list[int]]]]:
    """What captures, and what continues prompts, in the vLLM engine that is then opened."""
    from workbench.recording.vllm_capture import VllmCapture, check_recordable, continued

    check_recordable(sites, logits=logits)
    return VllmCapture, partial(continued, models)


def _writer(models: dict[str, AdaptedModel]) -> str:
    return "tuned" if "tuned" in models else next(iter(models))


def _stored_batch_size(store: Store) -> int | None:
    """A resumed store keeps the batch size it began with: padding enters the last bits of activations."""
    from workbench.recording import layout

    if store in (None, "memory") or not (Path(str(store)) / layout.STORE).is_file():
        return None
    try:
        return layout.read_store(Path(str(store)))["config"].get("batch_size")
    except layout.DamagedStore:
        return None  # the shards know which configuration they are of


def _options(scope: Where, dtype: torch.dtype | None, logits: bool, new_tokens: int) -> dict[str, Any]:
    if callable(scope.at) or callable(scope.exclude):
        shown: Any = {"at": f"function {getattr(scope.at, '__qualname__', scope.at)}"}
    else:
        shown = {key: value for key, value in scope.to_json().items() if value is not None}
    dtype_name = None if dtype is None else str(dtype).removeprefix("torch.")
    return {"positions": shown, "dtype": dtype_name, "logits": logits, "new_tokens": new_tokens}


@dataclass
class _Pass:
    """What one batch left: tensors [row, ...] keyed ``role/site``, and the prompt and position of each row."""

    tensors: dict[str, Tensor]
    prompt: Tensor
    position: Tensor
    finite: bool
    """Whether no tensor holds a NaN or an infinite value."""


@dataclass
class _Job:
    models: dict[str, AdaptedModel]
    prompts: Prompts
    plan: Plan
    capture: Capture
    progress: Progress

    @cached_property
    def index(self) -> RowIndex:
        """Names the rows."""
        return RowIndex(self.plan, self.prompts, next(iter(self.models.values())).tokenizer)

    def run(self, sink: Sink, config: dict[str, Any], team: Team | None = None) -> Recording:
        windows = self.plan.windows()
        self.progress.start("recording", len(self.prompts))
        try:
            with sink:
                rest = [windows[number] for number in sink.missing(len(windows))]
                self.progress.advance(len(self.prompts) - sum(len(window) for window in rest))
                if team is not None:
                    self._gather(team, rest, sink)
                else:
                    for window in rest:
                        self.record(window, sink)
        finally:
            self.progress.finish()
        recording = sink.recording(config)
        if len(recording) == 0:
            sink.discard()
            raise UserError(f"The positions {config['positions']} select no token of any prompt: choose others.")
        _warn_of_nonfinite(recording)
        return recording

    def _gather(self, team: Team, windows: list[list[int]], sink: Sink) -> None:
        from workbench.recording.distributed import recorded

        parts = recorded(team, self, windows, sink.part())
        for window, part in zip(windows, parts, strict=True):
            sink.merge(part)
            self.progress.advance(len(window))

    def record(self, window: list[int], sink: Sink) -> None:
        """Consecutive prompts: their rows together in the order of the prompts, or batch by batch as they come."""
        passes = (self._pass(batch) for batch in self.plan.batches(window))
        if sink.in_order:
            sink.add(*self._joined(list(passes)))
        else:
            for passed in passes:
                suspects = {} if passed.finite else passed.tensors
                sink.add(passed.tensors, self.index.rows(passed.prompt, passed.position, suspects))

    def _pass(self, batch: Batch) -> _Pass:
        """Every model on one batch."""
        tensors: dict[str, Tensor] = {}
        places: list[Captured] = []
        for role, model in self.models.items():
            places.append(self.capture.run(model, batch.encoded, batch.prompt_lengths))
            tensors |= {f"{role}/{name}": rows for name, rows in places[-1].rows.items()}
        row, position = places[0].batch_row, places[0].position
        assert row is not None and position is not None
        self.progress.advance(len(batch.prompts))
        finite = all_finite([total for place in places for total in place.sums])
        return _Pass(tensors, torch.tensor(batch.prompts)[row], position, finite)

    def _joined(self, passes: list[_Pass]) -> tuple[dict[str, Tensor], Rows]:
        """The rows of some batches, in the order of the prompts."""
        of, at = torch.cat([passed.prompt for passed in passes]), torch.cat([passed.position for passed in passes])
        order = row_order(of, at)
        names = list(passes[0].tensors)
        tensors = {name: in_order([passed.tensors.pop(name) for passed in passes], order) for name in names}
        of, at = (of, at) if order is None else (of[order], at[order])
        return tensors, self.index.rows(of, at, {} if all(passed.finite for passed in passes) else tensors)


def _warn_of_nonfinite(recording: Recording) -> None:
    if flagged := recording.nonfinite:
        role, site, prompt = flagged[0]
        warnings.warn(
            f"{len(flagged)} recorded values are NaN or infinite (first: {site} of the {role} model, prompt {prompt}); "
            "they are kept as found and listed in .nonfinite.",
            NonFiniteWarning,
            stacklevel=4,
        )
