"""NOLA adapters made plain: seeds and coefficients become the LoRA that they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workbench.errors import NotSupported, UserError
from workbench.files import check_new_folder, whole_folder
from workbench.typing import Float, Tensor

WEIGHTS = "adapter_model.safetensors"
_NOT_PEFTS = ("use_nola", "nola_num_basis")


def lora_from_random_bases(adapter: str | Path, folder: str | Path, *, device: str = "cpu", reseed: int = 0) -> Path:
    """Write the plain LoRA that a NOLA adapter stands for (Koohpayegani et al. 2024), for every other tool to read.

    A NOLA file holds, for A and B of every module, a seed, as many coefficients as there are random matrices, and a
    fixed starting matrix. A = start + sum of c_k R_k / sqrt(K), where the R_k are uniform in [-1, 1] and come from the
    seed. PyTorch draws other numbers on a GPU than on a CPU from one seed, and the file does not say where it was
    trained, so ``device`` must be said.

    Args:
        adapter: The folder that NOLA's fork of PEFT saved, with its weights as safetensors.
        folder: A new folder for the LoRA.
        device: Where the random matrices were drawn in training: cpu, or cuda (which needs a GPU here).
        reseed: Added to every seed: another draw of the matrices under the same coefficients (a control).

    Returns:
        The new folder, which PEFT loads.

    Raises:
        UserError: No NOLA adapter, weights stored as pickle, or a folder that exists.
        NotSupported: A draw on a device that is not here.

    Example:
        ``lora_from_random_bases("./nola", "./lora")``, then ``workbench.load_pair(base, "./lora")``
    """
    source, target = Path(adapter), Path(folder)
    config = _config(source)
    if torch.device(device).type != "cpu" and not torch.cuda.is_available():
        raise NotSupported(f"The random matrices of {source} cannot be drawn on {device!r}: this machine has no GPU.")
    check_new_folder(target)
    stored = load_file(str(source / WEIGHTS))
    made = {f"{half}.weight": _half(stored, half, device, reseed) for half in _halves(stored, source)}
    plain = {name: value for name, value in config.items() if name not in _NOT_PEFTS}
    with whole_folder(target) as partial:
        partial.mkdir(parents=True)
        (partial / "adapter_config.json").write_text(json.dumps(plain, indent=2))
        save_file(made, str(partial / WEIGHTS))
    return target


def is_random_bases(config: Mapping[str, Any]) -> bool:
    """Whether an adapter's config says that its factors are mixtures of random matrices."""
    return bool(config.get("use_nola"))


def stored_numbers(adapter: str | Path) -> dict[str, int]:
    """Module -> how many coefficients the file holds for its two factors."""
    counts: dict[str, int] = {}
    for name, values in load_file(str(Path(adapter) / WEIGHTS)).items():
        if name.endswith(".coefficients"):
            module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
            counts[module] = counts.get(module, 0) + values.numel()
    return counts


def _config(source: Path) -> dict[str, Any]:
    named = source / "adapter_config.json"
    if not named.is_file():
        raise UserError(f"{source} holds no adapter_config.json: give the folder of a NOLA adapter.")
    config: dict[str, Any] = json.loads(named.read_text())
    if not is_random_bases(config):
        raise UserError(f"{source} is no NOLA adapter (its config has no use_nola): read it with weight_delta.")
    if not (source / WEIGHTS).is_file():
        raise UserError(f"{source} holds no {WEIGHTS}; weights stored as pickle are not read: save them again.")
    return config


def _halves(stored: Mapping[str, Tensor], source: Path) -> list[str]:
    halves = [name.removesuffix(".coefficients") for name in stored if name.endswith(".coefficients")]
    if absent := [halve for halve in halves if f"{halve}.seed" not in stored or f"{halve}.weight" not in stored]:
        raise UserError(f"{source} has coefficients but no seed or starting matrix for {absent[0]}: the file is torn.")
    if not halves:
        raise UserError(f"{source} holds no coefficients of random matrices: the file is no NOLA adapter's.")
    return halves


def _half(stored: Mapping[str, Tensor], name: str, device: str, reseed: int) -> Tensor:
    start, coefficients = stored[f"{name}.weight"], stored[f"{name}.coefficients"]
    seed = int(stored[f"{name}.seed"].reshape(-1)[0]) + reseed
    return (start.float() + mixed(coefficients, (start.shape[0], start.shape[1]), seed, device).float()).contiguous()


def mixed(
    coefficients: Float[Tensor, " basis"], shape: tuple[int, int], seed: int, device: str = "cpu"
) -> Float[Tensor, "out into"]:
    """sum of c_k R_k / sqrt(K), with R_k uniform in [-1, 1] from ``seed``, drawn in the coefficients' dtype."""
    generator = torch.Generator(device).manual_seed(seed)
    count = len(coefficients)
    drawn = torch.empty(count, *shape, dtype=coefficients.dtype, device=device).uniform_(-1, 1, generator=generator)
    return torch.einsum("k,koi->oi", coefficients.to(device), drawn * (1 / math.sqrt(count))).cpu()
