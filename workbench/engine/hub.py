"""One hub per Hugging Face model: it owns every hook, their order, and the lock.

Per module and side there is one torch hook, which runs the interventions in their declared order and the
recorders after them, whatever was registered first. All of it leaves with the context, also after an exception.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from workbench.engine.compiled import check_eager, check_not_wrapped
from workbench.engine.context import ForwardContext, Generation, LooseCalls
from workbench.engine.dispatch import Dispatch, Entry, SiteHook, StopForward
from workbench.engine.families import Family
from workbench.engine.geometry import Geometry, read_geometry
from workbench.engine.holding import Holdings
from workbench.engine.layered import Shared, laid
from workbench.engine.listening import Listener
from workbench.engine.ports import Port, port
from workbench.engine.resolving import family_of
from workbench.engine.sites import HEAD_KINDS, KINDS, Site
from workbench.engine.template_tokens import TemplateTokens
from workbench.engine.withheld import Withheld
from workbench.errors import NotSupported, UserError, unknown_name
from workbench.typing import Tensor

__all__ = ["Hub", "SiteHook", "StopForward", "hub_of", "missing_site"]


class Hub:
    """All of Tunescope's state on one model."""

    def __init__(self, hf: Any) -> None:
        self._hf = weakref.ref(hf)
        self.family: Family = family_of(hf)
        self.geometry: Geometry = read_geometry(hf, self.family)
        self.context: ForwardContext | None = None
        """The forward pass that is running."""
        self.ended: ForwardContext | None = None
        """The one that ran last."""
        self.view = ""
        """Which of the models that share these weights is running ("base" or "tuned" of an adapter pair)."""
        self.withheld = Withheld()
        """Sites that the self-check could not prove for this model, with the reason; they are not offered."""
        self.holdings = Holdings()
        self.listener = Listener(self)
        self.generation: Generation | None = None
        """The call of ``generate`` that is running."""
        self.passes: dict[str, int] = {}
        """Forward passes that came to their end, by view."""
        self.strays = 0
        """Calls of hooks outside every forward pass, by who is inside the context."""
        self.hooked_contexts = 0
        self._listening = Shared(self.listener.listening)
        self._taps = {side: Shared(partial(self._tapped, side)) for side in ("pattern", "experts")}
        self.template: TemplateTokens | None = None
        """The special and chat-template tokens of the tokenizer that the model was given with."""
        self._dispatches: dict[tuple[int, str], Dispatch] = {}
        self._prompt_lengths: Tensor | None = None
        self._loose = LooseCalls()
        self._cached: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @property
    def hf(self) -> Any:
        """The model, as long as somebody holds it."""
        return self._hf()

    @property
    def n_hooks(self) -> int:
        """How many torch hooks of ours are on the model now."""
        return len(self._dispatches) + (1 if self.hooked_contexts else 0)

    @property
    def held(self) -> bool:
        """Whether a context (of hooks, of changed weights) is open on the model."""
        return bool(self.holdings)

    def sites(self) -> list[str]:
        """The canonical names this model has; experts once per layer, as ``blocks.L.mlp.expert``."""
        names = []
        for layer in range(self.geometry.n_layers):
            for kind in KINDS:
                site = Site(kind, layer, 0 if kind == "expert" else None)
                if site not in self.withheld and port(self.hf, self.family, self.geometry, site) is not None:
                    names.append(f"blocks.{layer}.mlp.expert" if kind == "expert" else site.name)
        return names

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the model; raises :class:`ModelBusy` when another thread, task or generator does."""
        holding = self.holdings.open()
        try:
            yield
        finally:
            self.holdings.close(holding)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Hold the model while it computes something else than it does outside (other weights, no adapter).

        Its forward passes are refused to whoever is outside the context, with :class:`ModelBusy`.
        """
        with self.owned(), self._listening.open():
            yield

    @contextmanager
    def hooked(
        self,
        hooks: Sequence[SiteHook],
        *,
        stop: bool = False,
        prompt_lengths: Tensor | None = None,
        all_called: bool = True,
    ) -> Iterator[None]:
        """Put ``hooks`` on the model for the current view.

        ``stop``: end each forward pass (by :class:`StopForward`) after the last of these sites.
        ``prompt_lengths`` [row]: which part of each row is the prompt, where no ``generate`` says so.
        Raises :class:`NotSupported` where compiled code would not call a hook, and (unless ``all_called`` is False) on
        leaving, when forward passes came to their end inside without calling one.
        """
        resolved = [(hook, self._port(hook)) for hook in hooks]
        check_eager(self.hf, [*(place.module for _, place in resolved), self.hf.base_model])
        view, entries = self.view, []
        passes, strays = self.passes.get(view, 0), self.strays
        with self.guarded(), ExitStack() as stack:
            stack.enter_context(self._hooked())
            if prompt_lengths is not None:
                stack.enter_context(laid(("prompts", id(self)), prompt_lengths, self._swap_prompt_lengths))
            for side in sorted({place.side for _, place in resolved} & set(self._taps)):
                stack.enter_context(self._taps[side].open())
            for hook, place in resolved:
                if place.needs is not None:
                    self._keep(place.needs, stack)
                entries.append(Entry(place, hook.fn, hook.edit, view, hook.bias, hook.heads))
                self._add(entries[-1], stack)
            if stop and resolved:
                self._stop_after(max(resolved, key=lambda pair: pair[0].site.order)[1], stack)
            yield
        if all_called and self.passes.get(view, 0) > passes:
            _check_ran(hooks, entries)
        elif all_called and self.strays > strays:
            _check_entered(hooks, entries)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        if self.hooked_contexts == 0:
            self._loose = LooseCalls()
        self.hooked_contexts += 1
        try:
            yield
        finally:
            self.hooked_contexts -= 1
            if self.hooked_contexts == 0:
                self.context = self.ended = None

    def module(self, site: Site) -> nn.Module:
        """The module at which ``site`` is read: o_proj for z, the router for router, the layer for resid_post."""
        return self._port(SiteHook(site, lambda _value, _ctx: None)).module

    def _port(self, hook: SiteHook) -> Port:
        site, geometry = hook.site, self.geometry
        known = site.layer is not None and 0 <= site.layer < geometry.n_layers and site not in self.withheld
        if site.kind == "expert":
            known = known and site.expert is not None and 0 <= site.expert < geometry.n_experts
        place = port(self.hf, self.family, geometry, site, edit=hook.edit) if known else None
        if place is None:
            raise missing_site(self, site)
        return place

    def _add(self, entry: Entry, stack: ExitStack) -> None:
        key = (id(entry.port.module), entry.port.side)
        if key not in self._dispatches:
            self._dispatches[key] = Dispatch(self, entry.port.module, entry.port.side)
        self._dispatches[key].add(entry)
        stack.callback(self._drop, key, entry)

    def _drop(self, key: tuple[int, str], entry: Entry) -> None:
        if self._dispatches[key].discard(entry):
            del self._dispatches[key]

    def _keep(self, place: Port, stack: ExitStack) -> None:
        def keep(value: Tensor, ctx: ForwardContext) -> None:
            ctx.scratch[place] = value

        self._add(Entry(place, keep, False, self.view), stack)

    def _tapped(self, side: str) -> Any:
        from workbench.engine import attention, experts

        return (attention if side == "pattern" else experts).tapped(self.hf)

    def swap_view(self, view: str) -> str:
        """Say which of the models that share these weights runs now; returns what was said before."""
        before, self.view = self.view, view
        return before

    def _swap_prompt_lengths(self, lengths: Tensor | None) -> Tensor | None:
        before, self._prompt_lengths = self._prompt_lengths, lengths
        return before

    def _stop_after(self, place: Port, stack: ExitStack) -> None:
        if _offloaded(self.hf):
            return
        dispatch = self._dispatches[(id(place.module), place.side)]
        dispatch.stops += 1
        stack.callback(lambda: setattr(dispatch, "stops", dispatch.stops - 1))

    def end(self) -> None:
        """A forward pass ended; what still asks for it (logits that are shifted) finds it as :attr:`ended`."""
        self.ended, self.context = self.context or self.ended, None

    def _tokens_before(self, cache: Any, length: int) -> int:
        """How many tokens a cache holds; caches of layers without attention do not count them, so we do."""
        n_attention = len(self.geometry.attention_layers)
        counted = 0 if cache is None or n_attention == 0 else int(cache.get_seq_length())
        key = cache if self.generation is None else self.generation
        if key is None or n_attention == self.geometry.n_layers:
            return counted
        start = counted or self._cached.get(key, 0)
        self._cached[key] = start + length
        return start

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """A forward pass begins with these arguments."""
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        shown = ids if ids is not None else embeds
        cache, mask = arguments.get("past_key_values"), arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = None if self.generation is None else self.generation.attention_mask
        assert shown is not None
        start = self._tokens_before(cache if cache is not None else arguments.get("cache_params"), shown.shape[1])
        knows_lengths = self.generation is not None or self._prompt_lengths is not None
        self.context = ForwardContext(
            batch=shown.shape[0],
            start=start,
            length=shown.shape[1],
            device=shown.device,
            input_ids=ids,
            attention_mask=mask,
            generation=self.generation,
            given_prompt_lengths=self._prompt_lengths,
            loose=None if knows_lengths or not self._loose.continues(ids, start) else self._loose,
            template=self.template,
        )


def missing_site(hub: Hub, site: Site) -> UserError:
    """Why a model has no such site, in one sentence."""
    layers = hub.geometry.attention_layers
    if site in hub.withheld:
        else_where = "" if Site("resid_post", site.layer) in hub.withheld else "; resid_post works"
        return NotSupported(
            f"{site.name} is not offered for this {type(hub.hf).__name__}, as it could not be proved at load: "
            f"{hub.withheld.reason(site)}{else_where}."
        )
    if site.kind in HEAD_KINDS | {"attn_out"} and len(layers) < hub.geometry.n_layers and site.layer not in layers:
        some = f"those that have some are {', '.join(map(str, layers))}"
        having = some if layers else "none of its layers has any in a known place"
        return NotSupported(f"Layer {site.layer} of this {type(hub.hf).__name__} has no attention heads: {having}.")
    return unknown_name("site of this model", site.name, hub.sites())


def _check_entered(hooks: Sequence[SiteHook], entries: Sequence[Entry]) -> None:
    if entries and not any(entry.ran for entry in entries):
        raise NotSupported(
            f"The module at {hooks[0].site.name} ran in this context, but no forward pass came through the model's own "
            "call, so nothing was read or changed: call the model itself, model(...), not its parts or their forward()."
        )


def _check_ran(hooks: Sequence[SiteHook], entries: Sequence[Entry]) -> None:
    silent = [hook.site.name for hook, entry in zip(hooks, entries, strict=True) if not entry.ran]
    if silent:
        more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
        raise NotSupported(
            f"Forward passes ran in this context, but the hook at {silent[0]}{more} was never called, so what came out "
            "is not what it should be: the model ran code that calls no hooks there (compiled, fused or skipped "
            "modules); load it without."
        )


def _offloaded(hf: Any) -> bool:
    """Whether accelerate moves weights in and out around each module; such a forward must run to its end."""
    places = getattr(hf, "hf_device_map", None) or {}
    return any(place in ("cpu", "disk") for place in places.values()) and len(set(places.values())) > 1


_HUBS: weakref.WeakKeyDictionary[Any, Hub] = weakref.WeakKeyDictionary()


def hub_of(hf: Any) -> Hub:
    """The hub of a Hugging Face model; made once, kept as long as the model lives."""
    check_not_wrapped(hf)
    inner = hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf
    if inner not in _HUBS:
        _HUBS[inner] = Hub(inner)
    return _HUBS[inner]
