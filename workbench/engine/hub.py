"""One hub per Hugging Face model: it owns every hook, their order, and the lock.

Per module and side there is one torch hook, which runs the interventions in their declared order and the
recorders after them, whatever was registered first. All of it leaves with the context, also after an exception.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from workbench.engine.checkpointing import keep_contexts
from workbench.engine.context import ForwardContext, Generation
from workbench.engine.families import Family, family_of, submodule
from workbench.engine.geometry import Geometry, read_geometry
from workbench.engine.ports import Port, port
from workbench.engine.sites import KINDS, Site
from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import ModelBusy, unknown_name
from workbench.typing import Tensor

HookFn = Callable[[Any, ForwardContext], Any]


@dataclass(frozen=True)
class SiteHook:
    """``fn(value, ctx)`` at a site. An edit returns the new value or None; a reader's return is ignored."""

    site: Site
    fn: HookFn
    edit: bool = False


class StopForward(Exception):
    """Ends a forward pass after the last site that was asked for. Never seen outside the engine."""


@dataclass(eq=False)
class _Entry:
    port: Port
    fn: HookFn
    edit: bool
    view: str


class _Dispatch:
    """The entries of one (module, side), and the torch hook that runs them."""

    def __init__(self, hub: Hub, module: nn.Module, side: str) -> None:
        self.hub = hub
        self.entries: list[_Entry] = []
        self.stops = False
        self._remove = self._register(module, side)

    def _register(self, module: nn.Module, side: str) -> Callable[[], None]:
        if side == "in":
            return module.register_forward_pre_hook(self._before, with_kwargs=True).remove
        if side == "out":
            return module.register_forward_hook(self._after).remove
        from workbench.engine import attention, experts

        return (attention if side == "pattern" else experts).set_tap(module, self.run)

    def add(self, entry: _Entry) -> None:
        edits = sum(one.edit for one in self.entries)
        self.entries.insert(edits if entry.edit else len(self.entries), entry)

    def discard(self, entry: _Entry) -> bool:
        """Take an entry away; True when none is left and the torch hook is gone."""
        self.entries.remove(entry)
        if not self.entries:
            self._remove()
        return not self.entries

    def run(self, raw: Any) -> Any:
        """The changed raw value, or None when nothing changed."""
        hub, before = self.hub, raw
        ctx = hub.context
        if ctx is None:
            return None
        for entry in self.entries:
            if entry.view != hub.view:
                continue
            value = entry.fn(entry.port.get(raw, ctx), ctx)
            if entry.edit and value is not None:
                raw = entry.port.put(raw, value, ctx)
        if self.stops:
            raise StopForward
        return None if raw is before else raw

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return self.run(output)

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args else ("hidden_states" if "hidden_states" in kwargs else next(iter(kwargs)))
        changed = self.run(args[0] if key is None else kwargs[key])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: changed})


class Hub:
    """All of Tunescope's state on one model."""

    def __init__(self, hf: Any) -> None:
        self._hf = weakref.ref(hf)
        self.family: Family = family_of(hf)
        self.geometry: Geometry = read_geometry(hf, self.family)
        self.context: ForwardContext | None = None
        self.view = ""
        """Which of the models that share these weights is running ("base" or "tuned" of an adapter pair)."""
        self.withheld: frozenset[str] = frozenset()
        """Kinds of site that the self-check could not confirm for this architecture; they are not offered."""
        self.template: TemplateTokens | None = None
        """The special and chat-template tokens of the tokenizer that the model was given with."""
        self._lock = threading.RLock()
        self._holders = 0
        self._dispatches: dict[tuple[int, str], _Dispatch] = {}
        self._depth = 0
        self._generation: Generation | None = None
        self._prompt_lengths: Tensor | None = None

    @property
    def hf(self) -> Any:
        """The model, as long as somebody holds it."""
        return self._hf()

    @property
    def n_hooks(self) -> int:
        """How many torch hooks of ours are on the model now."""
        return len(self._dispatches) + (1 if self._depth else 0)

    @property
    def held(self) -> bool:
        """Whether a context (of hooks, of changed weights) is open on the model."""
        return self._holders > 0

    def sites(self) -> list[str]:
        """The canonical names this model has; experts once per layer, as ``blocks.L.mlp.expert``."""
        names = []
        for layer in range(self.geometry.n_layers):
            for kind in KINDS:
                site = Site(kind, layer, 0 if kind == "expert" else None)
                if kind not in self.withheld and port(self.hf, self.family, self.geometry, site) is not None:
                    names.append(f"blocks.{layer}.mlp.expert" if kind == "expert" else site.name)
        return names

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the model; raises :class:`ModelBusy` when another thread does."""
        if not self._lock.acquire(blocking=False):
            raise ModelBusy(
                "Another thread is using this model; one model serves one context at a time: wait for it to end, "
                "or load the model a second time."
            )
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self._lock.release()

    @contextmanager
    def hooked(
        self, hooks: Sequence[SiteHook], *, stop: bool = False, prompt_lengths: Tensor | None = None
    ) -> Iterator[None]:
        """Put ``hooks`` on the model for the current view.

        ``stop``: end each forward pass (by :class:`StopForward`) after the last of these sites.
        ``prompt_lengths`` [row]: which part of each row is the prompt, where no ``generate`` says so.
        """
        resolved = [(hook, self._port(hook)) for hook in hooks]
        with self.owned(), ExitStack() as stack:
            stack.enter_context(self._listening())
            stack.enter_context(self._prompts(prompt_lengths))
            self._open_taps([one for _, one in resolved], stack)
            for hook, place in resolved:
                if place.needs is not None:
                    self._keep(place.needs, stack)
                self._add(_Entry(place, hook.fn, hook.edit, self.view), stack)
            if stop and resolved:
                self._stop_after(max(resolved, key=lambda pair: pair[0].site.order)[1], stack)
            yield

    def module(self, site: Site) -> nn.Module:
        """The module at which ``site`` is read: o_proj for z, the router for router, the layer for resid_post."""
        return self._port(SiteHook(site, lambda _value, _ctx: None)).module

    def _port(self, hook: SiteHook) -> Port:
        site, geometry = hook.site, self.geometry
        known = site.layer is not None and 0 <= site.layer < geometry.n_layers and site.kind not in self.withheld
        if site.kind == "expert":
            known = known and site.expert is not None and 0 <= site.expert < geometry.n_experts
        place = port(self.hf, self.family, geometry, site, edit=hook.edit) if known else None
        if place is None:
            raise unknown_name("site of this model", site.name, self.sites())
        return place

    def _add(self, entry: _Entry, stack: ExitStack) -> None:
        key = (id(entry.port.module), entry.port.side)
        if key not in self._dispatches:
            self._dispatches[key] = _Dispatch(self, entry.port.module, entry.port.side)
        self._dispatches[key].add(entry)
        stack.callback(self._drop, key, entry)

    def _drop(self, key: tuple[int, str], entry: _Entry) -> None:
        if self._dispatches[key].discard(entry):
            del self._dispatches[key]

    def _keep(self, place: Port, stack: ExitStack) -> None:
        def keep(value: Tensor, ctx: ForwardContext) -> None:
            ctx.scratch[place] = value

        self._add(_Entry(place, keep, False, self.view), stack)

    def _open_taps(self, ports: Sequence[Port], stack: ExitStack) -> None:
        sides = {place.side for place in ports}
        from workbench.engine import attention, experts

        if "pattern" in sides and self.hf.config._attn_implementation != attention.NAME:
            stack.enter_context(attention.tapped(self.hf))
        if "experts" in sides and self.hf.config._experts_implementation != experts.NAME:
            stack.enter_context(experts.tapped(self.hf))

    def _stop_after(self, place: Port, stack: ExitStack) -> None:
        if _offloaded(self.hf):
            return
        dispatch = self._dispatches[(id(place.module), place.side)]
        before, dispatch.stops = dispatch.stops, True
        stack.callback(setattr, dispatch, "stops", before)

    @contextmanager
    def _prompts(self, lengths: Tensor | None) -> Iterator[None]:
        before = self._prompt_lengths
        self._prompt_lengths = before if lengths is None else lengths
        try:
            yield
        finally:
            self._prompt_lengths = before

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Learn of every forward pass and every ``generate`` while at least one context is open."""
        self._depth += 1
        handle = self._listen() if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if handle is not None:
                handle()
                self.context = None

    def _listen(self) -> Callable[[], None]:
        hf, original = self.hf, self.hf.generate
        stack = ExitStack()
        self._listen_to_forwards(stack)

        def generate(*args: Any, **kwargs: Any) -> Any:
            before, self._generation = self._generation, _generation(hf, args, kwargs)
            try:
                return original(*args, **kwargs)
            finally:
                self._generation = before

        own = hf.__dict__.get("generate")
        hf.__dict__["generate"] = generate

        def leave() -> None:
            stack.close()
            if own is None:
                del hf.__dict__["generate"]
            else:
                hf.__dict__["generate"] = own

        return leave

    def _listen_to_forwards(self, stack: ExitStack) -> None:
        """Begin a context where a forward enters the model's body, or, where the head calls the decoder inside the
        body directly (OPT), where it enters that."""
        body, decoder = self.hf.base_model, submodule(self.hf, self.family.layers.rpartition(".")[0])
        checkpoints = stack.enter_context(ExitStack())
        inside: list[bool] = []

        def beginning(module: nn.Module) -> Callable[..., None]:
            named = _argument_names(type(module).forward)  # an instance's own may be somebody's wrapper

            def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if module is not body and inside:
                    return
                self.context = self._begin({**dict(zip(named, args, strict=False)), **kwargs} if args else kwargs)
                if module.training:
                    keep_contexts(self, checkpoints)
                if module is body is not decoder:
                    inside.append(True)

            return begin

        def end(*_: Any) -> None:
            inside.clear()

        for module in {body, decoder}:
            handle = module.register_forward_pre_hook(beginning(module), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        if body is not decoder:
            stack.callback(body.register_forward_hook(end, always_call=True).remove)

    def _begin(self, given: Mapping[str, Any]) -> ForwardContext:
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        shown = ids if ids is not None else embeds
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = None if self._generation is None else self._generation.attention_mask
        assert shown is not None
        return ForwardContext(
            batch=shown.shape[0],
            start=0 if cache is None else int(cache.get_seq_length()),
            length=shown.shape[1],
            device=shown.device,
            input_ids=ids,
            attention_mask=mask,
            generation=self._generation,
            given_prompt_lengths=self._prompt_lengths,
            template=self.template,
        )


@lru_cache(maxsize=256)
def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that may be given by position, ``self`` left out."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(n for n, one in inspect.signature(forward).parameters.items() if one.kind in by_position)[1:]


def _generation(hf: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation | None:
    given = args[0] if args else None
    for name in ("inputs", "input_ids", "inputs_embeds"):
        given = kwargs.get(name) if given is None else given
    if not isinstance(given, torch.Tensor):
        return None
    mask = kwargs.get("attention_mask")
    settings = kwargs.get("generation_config") or hf.generation_config
    return Generation(
        columns=given.shape[1],
        rows=given.shape[0],
        attention_mask=mask if mask is not None and not bool(mask.all()) else None,
        beams=kwargs.get("num_beams") or settings.num_beams or 1,
    )


def _offloaded(hf: Any) -> bool:
    """Whether accelerate moves weights in and out around each module; such a forward must run to its end."""
    places = getattr(hf, "hf_device_map", None) or {}
    return any(place in ("cpu", "disk") for place in places.values()) and len(set(places.values())) > 1


_HUBS: weakref.WeakKeyDictionary[Any, Hub] = weakref.WeakKeyDictionary()


def hub_of(hf: Any) -> Hub:
    """The hub of a Hugging Face model; made once, kept as long as the model lives."""
    inner = hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf
    if inner not in _HUBS:
        _HUBS[inner] = Hub(inner)
    return _HUBS[inner]
