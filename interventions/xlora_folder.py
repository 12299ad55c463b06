"""Opens an X-LoRA from its folder, with the router and the order of adapters that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from workbench.errors import UserError
from workbench.typing import Tensor

FILE = "adapter_model.safetensors"
_ROUTER = "internal_xlora_classifier."


def open_xlora(base: Any, folder: str | Path, adapters: Mapping[str, str] | None = None) -> Any:
    """A PeftModel with the X-LoRA of a folder, for :func:`interventions.live_gates`.

    PEFT 0.21 takes the number of an adapter out of the names of the router's tensors when it writes the folder, so that
    ``PeftModel.from_pretrained`` mixes by a router of random weights; and it sorts adapters by name, "10" before "2".
    Both are put right here; what the folder does not hold is refused.

    Args:
        base: The base: a folder or hub id, or a Hugging Face model, which is changed. Its cache is switched off, as
            X-LoRA asks.
        folder: What ``save_pretrained`` wrote.
        adapters: Name -> folder of each adapter, where they are no longer where the X-LoRA says.

    Returns:
        The PeftModel, in evaluation mode.

    Raises:
        UserError: No X-LoRA, an adapter that is gone, or a router whose weights the folder does not hold.

    Example:
        ``with iv.live_gates(iv.open_xlora("base", "xlora")) as log: ...``
    """
    from peft import PeftConfig, XLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    place = Path(folder)
    if not (place / "adapter_config.json").is_file():
        raise UserError(f"{place} is no folder of an adapter: give the one that save_pretrained of the X-LoRA wrote.")
    config = PeftConfig.from_pretrained(str(place))
    if not isinstance(config, XLoraConfig):
        raise UserError(f"{place} holds a {config.peft_type}, not an X-LoRA: open it with workbench.load_pair.")
    wanted = dict(config.adapters if adapters is None else adapters)
    if gone := [path for path in wanted.values() if Path(path).is_absolute() and not Path(path).is_dir()]:
        raise UserError(
            f"The X-LoRA mixes the adapter {gone[0]}, which is gone: say where all are, adapters={{name: folder}}."
        )
    config.adapters = _in_order(wanted)
    model = AutoModelForCausalLM.from_pretrained(str(base)) if isinstance(base, str | Path) else base
    model.config.use_cache = False
    made = get_peft_model(model, config).eval()
    _fill_router(made, place)
    return made


def _files(folder: Path) -> dict[int | None, Path]:
    """Number of an adapter -> what was written for it; None: for the whole."""
    numbered = {
        int(subfolder.name): subfolder / FILE
        for subfolder in folder.iterdir()
        if subfolder.is_dir() and subfolder.name.isdecimal()
    }
    return {number: file for number, file in ({None: folder / FILE} | numbered).items() if file.is_file()}


def _tensors(file: Path, part: str) -> dict[str, Tensor]:
    """The tensors whose names hold ``part``, by what follows the wrappers' names."""
    with safe_open(file, "pt") as opened:
        short = {name.rpartition("model.model.")[2]: name for name in opened.keys()}
        return {own: opened.get_tensor(name) for own, name in short.items() if part in own}


def _in_order(adapters: Mapping[str, str]) -> dict[str, str]:
    """The adapters by their numbers, which are their names: "10" comes after "2"."""
    if odd := [name for name in adapters if not name.isdecimal()]:
        raise UserError(
            f"The X-LoRA calls an adapter {odd[0]!r}, and PEFT runs only those called 0, 1, 2 and so on: give "
            'adapters={"0": folder, "1": folder}, in the order in which they were trained.'
        )
    return dict(sorted(adapters.items(), key=lambda item: int(item[0])))


def _fill_router(model: Any, folder: Path) -> None:
    """Load the router's weights, under whichever name they were written."""
    router = model.base_model.internal_xlora_classifier
    stored: dict[str, Tensor] = {}
    for number, file in _files(folder).items():
        for name, value in _tensors(file, _ROUTER).items():
            own = name.partition(_ROUTER)[2]
            if own not in router.state_dict() and number is not None:
                own = own.replace("layers.", f"layers.{number}.", 1)
            stored[own] = value
    if lacking := sorted(set(router.state_dict()) - set(stored)):
        raise UserError(
            f"{folder} does not hold the router's {lacking[0]}, so its mixing is lost: save the X-LoRA's state_dict() "
            "too, or read its gates in the process that trained it."
        )
    router.load_state_dict(stored)
