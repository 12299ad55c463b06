"""An adapter on a base it shares: put on, switched, and checked to leave the base as it was."""

from __future__ import annotations

import re
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workbench.errors import NotSupported, UserError
from workbench.models import checkpoints
from workbench.models.adapter_fit import check_fit, check_patterns
from workbench.models.adapter_layers import adapter_layers, bare_module, base_tensors
from workbench.models.quantized import without_cpu_packing
from workbench.models.sources import Source
from workbench.typing import Float, Tensor

ADAPTER_NAME = "default"
_ROUNDING_SHARE = 0.1
"""Of the way an adapter moves logits, how much half precision may leave when it is off."""
_PROBE_TOKENS = 8
_STARTS_FROM_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class AdapterState:
    """Which adapter layers were switched on, so that it can be restored exactly."""

    layers: tuple[tuple[nn.Module, bool], ...]
    model_disabled: bool

    @property
    def enabled(self) -> bool:
        """Whether every layer was on."""
        return all(on for _, on in self.layers)


def attach_adapter(hf: Any, source: Source, *, base_name: str = "") -> Any:
    """Put the adapter of ``source`` on the loaded model ``hf``; returns the ``PeftModel``, on and unmerged.

    ``hf`` itself is changed: its modules are wrapped, its weights shared. Checks the fit first. Raises
    UserError when the adapter belongs to another base or is incomplete; ``hf`` is then left as it was.
    """
    from peft import PeftModel

    if any(True for _ in adapter_layers(hf)):
        raise UserError(
            "This base model already carries an adapter; give the PeftModel itself as the tuned model, "
            "or load the base afresh."
        )
    name = base_name or str(getattr(hf, "name_or_path", "") or type(hf).__name__)
    check_patterns(source, [module for module, _ in hf.named_modules()])
    check_fit(source, hf, name)
    own = _stored_base_weights(source, hf)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if any(parameter.device.type == "meta" for parameter in hf.parameters()):
                peft_model = _attach_offloaded(hf, source)
            else:
                peft_model = PeftModel.from_pretrained(
                    hf, str(source.local()), ADAPTER_NAME, torch_device=str(hf.device)
                )
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, re.error) as error:
        detach_adapters(hf)
        raise UserError(f"PEFT cannot put {source.name} on {name}: {_gist(error)}") from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            detach_adapters(hf)
            raise UserError(f"The adapter {source.name} is incomplete for {name}: {_gist(warning.message)}")
        if not issubclass(warning.category, FutureWarning | DeprecationWarning):  # between two libraries
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    with torch.no_grad():
        for weight, before in own:
            weight.copy_(before)
    return peft_model.eval()


def _stored_base_weights(source: Source, hf: Any) -> list[tuple[Tensor, Tensor]]:
    """Weights of the base that PEFT would replace by the adapter's copy of them, each with its own values.

    After ``resize_token_embeddings`` PEFT stores the base's embeddings too, as ``original_module``.
    """
    if checkpoints.is_pickle_only(source.files, adapter=True):
        return []
    mark = ".original_module."
    stored = [name for name in checkpoints.stored_tensors(source.local(), adapter=True) if mark in name]
    paths = [name.removeprefix("base_model.model.").replace(mark, ".") for name in stored]
    weights = [weight for path in paths if (weight := _tensor_at(hf, path)) is not None]
    return [(weight, weight.detach().clone()) for weight in weights if weight.device.type != "meta"]


def _tensor_at(hf: Any, path: str) -> Tensor | None:
    module, _, name = path.rpartition(".")
    try:
        return getattr(hf.get_submodule(module), name, None)
    except AttributeError:
        return None


def _attach_offloaded(hf: Any, source: Source) -> Any:
    """As PEFT does, but where accelerate keeps weights elsewhere: PEFT itself would spread the model anew.

    The offloaded weights pass through the CPU's memory; the adapter's own go where their module computes.
    """
    from accelerate.utils import align_module_device
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    folder = str(source.local())
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    with ExitStack() as stack:
        for module in list(hf.modules()):
            if any(parameter.device.type == "meta" for parameter in module.parameters(recurse=False)):
                stack.enter_context(align_module_device(module, "cpu"))
        peft_model = PeftModel(hf, config, ADAPTER_NAME)
        outcome = set_peft_model_state_dict(peft_model, load_peft_weights(folder, device="cpu"), ADAPTER_NAME)
    prefix = peft_model.base_model.prefix
    if absent := [name for name in outcome.missing_keys if prefix in name]:
        warnings.warn(f"Found missing adapter keys: {absent}.", stacklevel=2)
    for layer in adapter_layers(peft_model):
        hook = getattr(bare_module(layer), "_hf_hook", None)
        if hook is not None and hasattr(layer, "_move_adapter_to_device_of_base_layer"):
            layer._move_adapter_to_device_of_base_layer(ADAPTER_NAME, torch.device(hook.execution_device))
    try:
        _probe(peft_model)
    except RuntimeError as error:
        detach_adapters(hf)
        raise NotSupported(
            f"{source.name} ({peft_model.active_peft_config.peft_type.value}) reads weights of the base that are "
            "offloaded; load the pair where the base fits, or merge the adapter and give the merged model."
        ) from error
    return peft_model


def _gist(message: Any) -> str:
    if isinstance(message, KeyError):
        return f"its files lack {message}, which its config asks for"
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    # torch heads a list of mismatches with a line that says nothing
    text = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else type(message).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def detach_adapters(hf: Any) -> None:
    """Take every adapter layer out of ``hf`` again, unmerged; its own modules return to their places."""
    for parent in list(hf.modules()):
        for name, child in list(parent.named_children()):
            if (inner := bare_module(child)) is not None:
                setattr(parent, name, inner)
    if hasattr(hf, "peft_config"):
        del hf.peft_config


def set_adapter_enabled(peft_model: Any, enabled: bool | AdapterState) -> AdapterState:
    """Switch every adapter layer on or off, or back to an earlier state; returns the state before.

    Calls nest: ``before = set_adapter_enabled(m, False); ...; set_adapter_enabled(m, before)`` restores what
    was, also a mixture of layers on and off. Unlike PEFT's own switch it leaves ``requires_grad`` alone.
    Raises UserError when an adapter is merged into the weights, where off cannot be the base exactly.
    """
    layers = list(adapter_layers(peft_model))
    if any(layer.merged_adapters for layer in layers):
        raise UserError(
            "The adapter is merged into the base's weights, and unmerging drifts; call unmerge_adapter() "
            "for a rounded base, or load base and adapter afresh."
        )
    before = AdapterState(
        tuple((layer, not layer.disable_adapters) for layer in layers),
        bool(getattr(peft_model, "_adapters_disabled", False)),
    )
    if isinstance(enabled, AdapterState):
        wanted, disabled = enabled.layers, enabled.model_disabled
    else:
        wanted, disabled = tuple((layer, enabled) for layer in layers), not enabled
    layer: Any
    for layer, on in wanted:
        # PEFT keeps it in this flag alone; its public switch also rewrites requires_grad
        layer._disable_adapters = not on
    if hasattr(peft_model, "_adapters_disabled"):
        peft_model._adapters_disabled = disabled
    return before


@dataclass(frozen=True)
class BaseState:
    """What a base was before an adapter came: a checksum of each weight, and logits on a few tokens."""

    checksums: dict[str, int]
    logits: Float[Tensor, "pos vocab"]


def snapshot_base(hf: Any) -> BaseState:
    """Remember the base ``hf`` (no copy of its weights is made): one pass over them and one short forward.

    Weights that are offloaded are not summed; the logits still cover them.
    """
    sums = {name: checksum(tensor) for name, tensor in base_tensors(hf) if tensor.device.type != "meta"}
    return BaseState(sums, _probe(hf))


def rewrites_base(peft_model: Any, before: BaseState) -> str | None:
    """Why the model with its adapter off is not the base, in words; None when it is the base exactly.

    Some adapters rewrite the base's own weights (PiSSA, OLoRA, CorDA, KaSA take their starting point out of
    them; trained biases replace the base's). ``before`` is :func:`snapshot_base` of the base before the
    adapter came, or of the base loaded separately.
    """
    now = {name: checksum(t) for name, t in base_tensors(peft_model) if name in before.checksums}
    changed = sorted(name for name, value in before.checksums.items() if now.get(name, value) != value)
    config = peft_model.active_peft_config
    how = getattr(config, "init_lora_weights", None)
    kind = f"{config.peft_type.value}{f' initialised as {how}' if isinstance(how, str) else ''}"
    if changed:
        return (
            f"the adapter ({kind}) rewrites {len(changed)} of the base's own weights ({changed[0]}), so "
            "switching it off does not give the base back"
        )
    state = set_adapter_enabled(peft_model, False)
    try:
        gap = float((_probe(peft_model) - before.logits).abs().max())
    finally:
        set_adapter_enabled(peft_model, state)
    # the same weights on the same device are bit-equal; a re-dispatched model may round otherwise, in half precision
    # by more than any fixed share: there it must come back nearly all the way that the adapter moved it
    allowed = 1e-3 * float(before.logits.std())
    if gap > allowed and peft_model.dtype in (torch.bfloat16, torch.float16):
        allowed = max(allowed, _ROUNDING_SHARE * float((_probe(peft_model) - before.logits).abs().max()))
    if gap <= allowed:
        return None
    return f"with the adapter ({kind}) off, logits differ from the base's by up to {gap:.2g}"


def taken_from_base(peft_model: Any) -> tuple[str, ...]:
    """A sentence for people where an adapter on the base that was given has changed that base, by its config."""
    changes = []
    for config in peft_model.peft_config.values():
        start = getattr(config, "init_lora_weights", None)
        biases = getattr(config, "bias", "none")
        if (isinstance(start, str) and start.startswith(_STARTS_FROM_BASE)) or getattr(config, "kasa_config", None):
            changes.append(f"was started from the base's own weights ({start if isinstance(start, str) else 'kasa'})")
        elif isinstance(biases, str) and biases != "none":
            changes.append(f"trained the base's biases (bias={biases!r})")
    return tuple(
        f"The adapter {change}, so the model with its adapter off is not the base that it came from: give the base as "
        "a folder for a comparison with that."
        for change in dict.fromkeys(changes)
    )


def _probe(model: Any) -> Float[Tensor, "pos vocab"]:
    device = model.get_input_embeddings().weight.device
    vocab = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(_PROBE_TOKENS, device="cpu" if device.type == "meta" else device) * 7 % vocab
    with torch.no_grad(), without_cpu_packing(model):
        return model(input_ids=tokens[None], use_cache=False).logits[0].float().cpu()


def checksum(tensor: Tensor) -> int:
    """A 64-bit sum over the tensor's bytes, rows weighted by their place; runs where the tensor is, uncopied.

    Guards against change, not against an adversary.
    """
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = raw.numel() // 8 * 8
    words = raw[:whole].view(torch.int64) if raw.storage_offset() % 8 == 0 else raw[:whole].clone().view(torch.int64)
    total = int(raw[whole:].long().sum())
    width = 4096
    rows = words[: words.numel() // width * width].view(-1, width).sum(1)
    odd = torch.arange(rows.numel(), device=rows.device) * 2 + 1
    total += int((rows * odd).sum()) + 3 * int(words[rows.numel() * width :].sum())
    return total
