"""Compiled code does not call the hooks that came after it was compiled.

Where that can be seen, hooks are refused. Compiled callables out of sight (``fast = torch.compile(model)`` beside the
model that a recipe is applied to) run eagerly as long as hooks are on a model of the same classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from workbench.engine.layered import Shared
from workbench.errors import NotSupported, UserError


def check_not_wrapped(hf: Any) -> None:
    """Raise :class:`UserError` for what ``torch.compile(model)`` returns."""
    if isinstance(hf, nn.Module) and isinstance(hf.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
        raise UserError("This model went through torch.compile; give the model from before (its _orig_mod).")


def check_eager(hf: nn.Module, hooked: Iterable[nn.Module]) -> None:
    """Raise :class:`NotSupported` where a module around one of ``hooked``, or itself, was compiled in place."""
    compiled = _compiled_in_place(hf)
    if not compiled:
        return
    wanted = {id(module) for module in hooked}
    for module in compiled:
        if any(id(inner) in wanted for inner in module.modules()):
            name = next((name for name, submodule in hf.named_modules() if submodule is module), "")
            raise NotSupported(
                f"{f'The module {name}' if name else 'This model'} was compiled (torch.compile), and compiled code "
                "does not call hooks, so nothing could be read or changed in it: load the model without compiling it."
            )


_EAGER = Shared(lambda: torch.compiler.set_stance("force_eager"))


@contextmanager
def compiled_code_waits(kinds: Iterable[type[nn.Module]]) -> Iterator[None]:
    """Let callables that were compiled from models of these classes run eagerly inside, so that they call hooks."""
    if any(_has_compiled_code(kind.forward) for kind in kinds):
        with _EAGER.open():
            yield
    else:
        yield


def _compiled_in_place(hf: nn.Module) -> list[nn.Module]:
    """Looked for whenever hooks are put on, so without the cost of ``hf.modules()``."""
    modules, waiting = [], [hf]
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        if own.get("_compiled_call_impl") is not None or hasattr(own.get("forward"), "_torchdynamo_orig_callable"):
            modules.append(module)
        waiting += [child for child in own["_modules"].values() if child is not None]
    return modules


def _has_compiled_code(forward: Callable[..., Any]) -> bool:
    from torch._dynamo import eval_frame

    entries = getattr(eval_frame, "_debug_get_cache_entry_list", None)  # says so in no public way
    code = getattr(forward, "__code__", None)
    return entries is not None and code is not None and bool(entries(code))
