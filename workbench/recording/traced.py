"""Recording through nnsight's traces instead of our hooks: here, or on NDIF for models that nobody here can hold.

The same sites are read on the same modules, in the order of computation, so the rows are those of the hook engine. The
traced block itself holds nothing but torch, so that it can run where Tunescope is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.ports import Port, port
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models import hub
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.recording.capture import LOGITS, Capture, Captured
from workbench.typing import Int, Tensor


def check(models: Mapping[str, AdaptedModel], sites: Sequence[Site], *, remote: bool, new_tokens: int) -> None:
    """Raise :class:`UserError` for what traces cannot read or run."""
    for site in sites:
        if site.kind in ("pattern", "expert"):
            raise NotSupported(
                f"{site.name} passes inside a fused function, where traces do not reach: record it with "
                'backend="hooks".'
            )
    for model in models.values():
        if model.n_hooks:
            raise NotSupported(
                "A trace reads inside the modules, below our hooks, and would miss what the interventions on this "
                'model change: leave their context, or record with backend="hooks".'
            )
        if remote:
            _check_hosted(model)
    if remote and new_tokens:
        raise NotSupported("NDIF only reads here: continue the prompts elsewhere and record prompt and continuation.")


def _check_hosted(model: AdaptedModel) -> None:
    if model.hf is not model.inner:
        raise NotSupported(
            "NDIF runs the models that it hosts, and a PEFT adapter is none: merge it and have it hosted."
        )
    if Path(model.name).exists() or model.origin is None:
        raise UserError(f"NDIF hosts models under hub ids, and {model.name} is none: load the models by hub ids.")


@dataclass(frozen=True)
class TracedCapture(Capture):
    """Reads every site but attention patterns and single experts, in traces on this machine."""

    remote: ClassVar[bool] = False
    wrapped: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)
    """nnsight's view of each Hugging Face model; made once for a recording."""

    def run(self, model: AdaptedModel, batch: Encoded, prompt_lengths: Int[Tensor, " row"] | None) -> Captured:
        """One traced forward pass of ``model``; it ends after the last site unless logits are kept."""
        ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
        ctx = ForwardContext(ids.shape[0], 0, ids.shape[1], ids.device, ids, mask, given_prompt_lengths=prompt_lengths)
        ports = {site: _port(model, site) for site in self.sites}
        taken = Captured()
        with model.active():
            raw, logits = self._traced(model, ports, ids, mask)
        self._locate(ctx, taken)
        for site, place in ports.items():
            self._reader(site, taken)(place.get(raw[place.module, place.side], ctx), ctx)
        if logits is not None:
            self._store(taken, LOGITS, logits, ctx.scratch["capture"])
        return taken

    def _traced(
        self, model: AdaptedModel, ports: dict[Site, Port], ids: Tensor, mask: Tensor
    ) -> tuple[dict[tuple[Any, str], Any], Tensor | None]:
        """What passed on each side of each module, and the logits where they are kept."""
        import nnsight

        call: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if not bool(mask.all()):
            call |= {"attention_mask": mask, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
        root, sides = self._root(model), list(dict.fromkeys((place.module, place.side) for place in ports.values()))
        paths = {module: path for path, module in model.hf.named_modules()}
        places = [(_envoy(root, paths[module]), side) for module, side in sides]
        logits, remote = self.logits, self.remote
        with _said(), torch.no_grad(), root.trace(**call, remote=remote) as tracer:
            saved = nnsight.save([])
            for envoy, side in places:
                value = envoy.input if side == "in" else envoy.output
                saved.append(value.clone() if isinstance(value, torch.Tensor) else value)
            if logits:
                saved.append(root.output.logits)
            else:
                tracer.stop()
        return dict(zip(sides, saved, strict=False)), saved[-1] if logits else None

    def _root(self, model: AdaptedModel) -> Any:
        if id(model.hf) not in self.wrapped:
            self.wrapped[id(model.hf)] = _hosted(model) if self.remote else model.to_nnsight()
        return self.wrapped[id(model.hf)]


@dataclass(frozen=True)
class RemoteCapture(TracedCapture):
    """Sends each trace to NDIF (``NDIF_API_KEY``). The models must be hosted there under the hub ids they were loaded
    from, and need be here only without weights: ``load_pair(..., device="meta")``.

    It has not been run against the service: tested are the same trace here, and the request until it is sent.
    """

    remote: ClassVar[bool] = True


def _port(model: AdaptedModel, site: Site) -> Port:
    place = port(model.inner, model.hub.family, model.hub.geometry, site)
    assert place is not None  # expand() offered it
    return place


def _envoy(root: Any, path: str) -> Any:
    """nnsight's counterpart of the module at ``path``."""
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def _hosted(model: AdaptedModel) -> Any:
    """The model as NDIF names it: by hub id and revision, without weights here."""
    from nnsight import TransformersModel

    assert model.origin is not None
    hosted = model.origin.base if model.role != "tuned" else str(model.origin.tuned)
    name, _, revision = hosted.partition("@")
    return TransformersModel(name, task="text-generation", revision=revision or None, tokenizer=model.tokenizer)


@contextmanager
def _said() -> Iterator[None]:
    """Turn what the service answers, or that it does not, into a sentence."""
    from nnsight.intervention.backends.remote import RemoteError

    try:
        yield
    except (RemoteError, *hub.unreachable()) as error:
        raise UserError(f"NDIF did not run this ({error}): check NDIF_API_KEY, and that it hosts the model.") from error
