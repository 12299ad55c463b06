"""What the hub learns while a context is open: every forward pass, every ``generate``, and who calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.engine.checkpointing import keep_contexts
from workbench.engine.compiled import compiled_code_waits
from workbench.engine.context import Generation
from workbench.engine.families import submodule
from workbench.errors import ModelBusy, NotSupported, UserError

if TYPE_CHECKING:
    from workbench.engine.hub import Hub

_CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
"""Entries that pack the tokens of several prompts into one row, in a thread of their own."""


class Listener:
    """Stands at the entrances of one model while contexts are open on it."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.on = False
        self._kinds = {type(module) for module in hub.hf.modules()}
        self._entries: dict[str, Any] = {}
        self._thread: int | None = None
        self._generating = 0
        self._inside: list[nn.Module] = []
        self._checkpoints = ExitStack()
        self._detach = ExitStack()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise UserError("A context (a recipe, a recording) is open on this model: leave it before copying the model.")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Learn of every forward pass and every ``generate``, until the context ends."""
        with ExitStack() as stack:
            stack.enter_context(compiled_code_waits(self._kinds))
            self._checkpoints = stack.enter_context(ExitStack())
            self._attach_to_forwards()
            stack.callback(self._detach_from_forwards)
            self._replace_entries(stack)
            self.on = True
            stack.callback(self._stop)
            yield

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Nothing of ours hangs on the model's entrances inside, so that it can be copied."""
        self._detach_from_forwards()
        own = self.hub.hf.__dict__
        hidden = {name: own.pop(name) for name, entry in self._entries.items() if own.get(name) is entry}
        try:
            yield
        finally:
            own.update(hidden)
            if self.on:
                self._attach_to_forwards()

    @contextmanager
    def running(self) -> Iterator[None]:
        """This thread computes with the model; raises :class:`ModelBusy` when another one does at this moment."""
        self._claim()
        self._generating += 1
        try:
            yield
        finally:
            self._generating -= 1
            if not self._generating:
                self._inside.clear()  # whatever a keyboard interrupt left there
            self._release()

    def _stop(self) -> None:
        self.on = False
        self._thread, self._generating = None, 0
        self._inside.clear()

    def _attach_to_forwards(self) -> None:
        """Begin a context where a forward enters the model's body, or, where the head calls the decoder inside the
        body directly (OPT), where it enters that."""
        hf = self.hub.hf
        body, decoder = hf.base_model, submodule(hf, self.hub.family.layers.rpartition(".")[0])
        stack = ExitStack()
        for module in dict.fromkeys((hf, body, decoder)):
            before = _Before(self, module, begins=module is not hf or hf is body)
            stack.callback(module.register_forward_pre_hook(before.enter, with_kwargs=True, prepend=True).remove)
            stack.callback(module.register_forward_hook(self.leave, always_call=True).remove)
        self._detach = stack

    def _detach_from_forwards(self) -> None:
        self._detach.close()

    def _replace_entries(self, stack: ExitStack) -> None:
        hf, hub = self.hub.hf, self.hub
        original = hf.generate

        def generate(*args: Any, **kwargs: Any) -> Any:
            if not self.on:  # somebody kept it beyond the context
                return original(*args, **kwargs)
            try:
                hub.holdings.check()
            except ModelBusy:
                if (streamer := kwargs.get("streamer")) is not None:
                    streamer.end()  # whoever reads it in another thread waits for its end
                raise
            with self.running():
                before, hub.generation = hub.generation, generation_of(hf, args, kwargs, hub.generation)
                try:
                    return original(*args, **kwargs)
                finally:
                    hub.generation = before

        def refused(*_: Any, **__: Any) -> Any:
            raise NotSupported(
                "Continuous batching packs several prompts into one row, where positions and rows mean nothing to a "
                "recipe or a recording: call generate() with a padded batch inside the context."
            )

        new: dict[str, Any] = {"generate": generate, **{name: refused for name in _CONTINUOUS if hasattr(hf, name)}}
        if hasattr(hf, "_valid_auto_compile_criteria"):  # a static cache would be decoded by compiled code
            new["_valid_auto_compile_criteria"] = lambda *_, **__: False
        for name, entry in new.items():
            own = hf.__dict__.get(name)
            hf.__dict__[name] = entry
            stack.callback(_put_back, hf, name, entry, own)
        self._entries = new
        stack.callback(new.clear)

    def enter(self, module: nn.Module) -> bool:
        """A forward pass enters one of the entrances; returns whether it is in the body already.

        Raises :class:`ModelBusy` for whoever is outside the open contexts.
        """
        self.hub.holdings.check()
        self._claim()
        if module in self._inside:  # an interrupt ended the pass before without a word
            del self._inside[self._inside.index(module) :]
        within = any(inner is not self.hub.hf for inner in self._inside)
        self._inside.append(module)
        return within

    def begin(self, module: nn.Module, arguments: dict[str, Any]) -> None:
        """A forward pass enters the body, or the decoder that the head calls directly."""
        if self.hub.hooked_contexts:
            self.hub.begin(arguments)
            if module.training:
                keep_contexts(self.hub, self._checkpoints)

    def leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        """A forward pass leaves one of the entrances; ``output`` is None when an exception ended it."""
        if self._thread != get_ident() or module not in self._inside:
            return  # of a pass that was refused
        del self._inside[self._inside.index(module) :]
        if output is not None:
            self.hub.passes[self.hub.view] = self.hub.passes.get(self.hub.view, 0) + 1
        if not self._inside:
            self.hub.end()
        self._release()

    def _claim(self) -> None:
        me = get_ident()
        if self._thread is not None and self._thread != me:
            raise ModelBusy(
                "Another thread computes with this model at this moment; inside a context it serves one at a time: "
                "wait for it, or load the model a second time."
            )
        self._thread = me

    def _release(self) -> None:
        if not self._inside and not self._generating:
            self._thread = None


class _Before:
    """The hook in front of one entrance."""

    def __init__(self, listener: Listener, module: nn.Module, *, begins: bool) -> None:
        self.listener = listener
        self.begins = begins
        self.names = _argument_names(type(module).forward)  # an instance's own may be somebody's wrapper

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.listener.enter(module) and self.begins:
            arguments = {**dict(zip(self.names, args, strict=False)), **kwargs} if args else kwargs
            self.listener.begin(module, arguments)


def generation_of(
    hf: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outer: Generation | None = None
) -> Generation | None:
    """What a call of ``generate`` says about its prompts.

    ``outer``: the call that this one is part of (a model that drafts for itself), whose prompt is the prompt.
    """
    settings = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or hf.generation_config
    beams = kwargs.get("num_beams") or settings.num_beams or 1
    prompt = kwargs.get("inputs_embeds")  # beside token ids, these are what the model reads
    for name in ("inputs", "input_ids"):
        prompt = kwargs.get(name) if prompt is None else prompt
    prompt = args[0] if prompt is None and args else prompt
    if prompt is None:
        return Generation(columns=1, rows=1, attention_mask=None, beams=beams)  # the beginning-of-text token
    if not isinstance(prompt, torch.Tensor):
        return None
    if outer is not None and outer.rows == prompt.shape[0] and outer.columns <= prompt.shape[1]:
        return outer
    mask = kwargs.get("attention_mask")
    return Generation(
        columns=prompt.shape[1],
        rows=prompt.shape[0],
        attention_mask=mask if mask is not None and not bool(mask.all()) else None,
        beams=beams,
        most=_most(settings, kwargs, prompt.shape[1]),
    )


def _most(settings: Any, kwargs: dict[str, Any], columns: int) -> int | None:
    """New tokens at most, as ``generate`` was told; ``max_new_tokens`` counts before ``max_length``."""
    named = {name: getattr(settings, name, None) for name in ("max_new_tokens", "max_length")}
    for limits in (kwargs, named):
        new, length = limits.get("max_new_tokens"), limits.get("max_length")
        if new is not None:
            return int(new)
        if length is not None:
            return max(0, int(length) - columns)
    return None


@lru_cache(maxsize=256)
def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that may be given by position, ``self`` left out."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(n for n, parameter in inspect.signature(forward).parameters.items() if parameter.kind in by_position)[
        1:
    ]


def _put_back(hf: Any, name: str, ours: Any, own: Any) -> None:
    """Take our entry away, unless somebody has put another one in its place."""
    if hf.__dict__.get(name) is not ours:
        return
    if own is None:
        del hf.__dict__[name]
    else:
        hf.__dict__[name] = own
