"""Sparse autoencoders from a SAELens folder (``cfg.json`` and safetensors), read without the package.

The package itself would pull TransformerLens back to an older version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.files import write_json
from workbench.tensor_files import write_safetensors
from workbench.typing import Float, Tensor

WEIGHTS = "sae_weights.safetensors"
ARCHITECTURES = ("standard", "jumprelu", "topk", "gated")
_TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
"""Architecture -> what SAELens calls it where another activation is written than is read."""
_NEEDED = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


@dataclass(frozen=True)
class Dictionary:
    """An encoder and decoder; latent i is decoder row i."""

    weights: dict[str, Tensor]
    """W_enc [d_in, latent], W_dec [latent, d_in], b_dec [d_in], and the architecture's own."""
    architecture: str
    k: int | None
    """How many latents a top-k dictionary keeps."""
    subtract_bias: bool
    normalize: str
    by_decoder_norm: bool
    site: Site | None
    """Where the dictionary was trained, if its configuration says so."""
    folder: str
    transcodes: bool = False
    """Whether what it writes is something else than what it reads."""

    @classmethod
    def load(cls, folder: str | Path) -> Dictionary:
        """Read ``cfg.json`` and ``sae_weights.safetensors``.

        Raises :class:`UserError` when a file is missing or does not fit, :class:`NotSupported` for an architecture
        or a normalisation that is not known here.
        """
        path = Path(folder)
        for name in ("cfg.json", WEIGHTS):
            if not (path / name).is_file():
                raise UserError(f"{path} has no {name}: give the folder of one SAELens dictionary.")
        try:
            config = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
            weights = {name: tensor.float() for name, tensor in load_file(path / WEIGHTS).items()}
        except (json.JSONDecodeError, SafetensorError) as error:
            raise UserError(f"The dictionary in {path} is damaged ({error}); fetch it again.") from error
        if "log_threshold" in weights:
            weights["threshold"] = weights.pop("log_threshold").exp()
        architecture, transcodes = _architecture(config), str(config.get("architecture")) in _TRANSCODERS.values()
        _check(weights, architecture, config, path)
        keywords = config.get("activation_fn_kwargs") or {}
        k = config.get("k", keywords.get("k"))
        return cls(
            weights=weights,
            architecture=architecture,
            k=None if k is None else int(k),
            subtract_bias=bool(config.get("apply_b_dec_to_input", not transcodes)),
            normalize=str(config.get("normalize_activations") or "none"),
            by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
            site=_site(config),
            folder=str(path),
            transcodes=transcodes,
        )

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write ``cfg.json`` and ``sae_weights.safetensors`` as SAELens does; returns the folder.

        Args:
            folder: Where; its files of these names are replaced, each whole or not at all.
            metadata: Further entries of the configuration's ``metadata``.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        d_in, width = self.weights["W_enc"].shape
        site = {} if self.site is None else {"hook_name": self.site.name, "hook_layer": self.site.layer}
        config = {
            "architecture": _TRANSCODERS.get(self.architecture, self.architecture) if self.transcodes
            else self.architecture,
            "d_in": d_in, "d_sae": width, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": self.subtract_bias, "normalize_activations": self.normalize,
            "reshape_activations": "none", "metadata": {**site, **(metadata or {})},
            **({"d_out": self.decoder.shape[1]} if self.transcodes else {}),
            **({"k": self.k, "rescale_acts_by_decoder_norm": self.by_decoder_norm} if self.k is not None else {}),
        }  # fmt: skip
        write_safetensors(path / WEIGHTS, {name: [weight.cpu().contiguous()] for name, weight in self.weights.items()})
        write_json(path / "cfg.json", config)
        return path

    @property
    def decoder(self) -> Float[Tensor, "latent d_in"]:
        """The directions."""
        return self.weights["W_dec"]

    @property
    def identity(self) -> dict[str, str]:
        """Its folder, and a hash of its weights and of how they are used."""
        how = (self.architecture, self.k, self.subtract_bias, self.normalize, self.by_decoder_norm)
        digest = hashlib.sha256(repr(how).encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].cpu().contiguous().numpy().data)
        return {"folder": self.folder, "hash": digest.hexdigest()}

    def encode(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row latent"]:
        """The activation of every latent."""
        w = {name: weight.to(x.device) for name, weight in self.weights.items()}
        x = _normalized(x.float(), self.normalize)
        x = x - w["b_dec"] if self.subtract_bias else x
        if self.architecture == "gated":
            open_ = (x @ w["W_enc"] + w["b_gate"]) > 0
            return open_ * (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        before = x @ w["W_enc"] + w["b_enc"]
        if self.architecture == "jumprelu":
            return before.relu() * (before > w["threshold"].relu())
        if self.architecture == "topk":
            before = before * w["W_dec"].norm(dim=-1) if self.by_decoder_norm else before
            assert self.k is not None
            best = before.topk(self.k, dim=-1)
            return torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())
        return before.relu()


def _architecture(config: dict[str, Any]) -> str:
    named = str(config.get("architecture", "standard"))
    named = next((plain for plain, transcoder in _TRANSCODERS.items() if transcoder == named), named)
    if named == "standard" and config.get("activation_fn", config.get("activation_fn_str")) == "topk":
        return "topk"  # how folders older than version 6 wrote it
    if named not in ARCHITECTURES:
        raise NotSupported(f"Dictionaries of the kind {named!r} are not read here; known: {', '.join(ARCHITECTURES)}.")
    return named


def _check(weights: dict[str, Tensor], architecture: str, config: dict[str, Any], path: Path) -> None:
    missing = [name for name in ("W_enc", "W_dec", "b_dec", *_NEEDED[architecture]) if name not in weights]
    if missing:
        raise UserError(f"The {architecture} dictionary in {path} lacks {', '.join(missing)}; fetch it again.")
    if weights["W_enc"].shape != weights["W_dec"].T.shape:
        raise UserError(f"The encoder and decoder in {path} do not fit each other; fetch the dictionary again.")
    normalize = str(config.get("normalize_activations") or "none")
    if normalize not in ("none", "layer_norm", "constant_norm_rescale"):
        raise NotSupported(
            f"The dictionary in {path} needs activations scaled by {normalize!r}, a factor its folder does not hold: "
            "fold it into the weights with SAELens first."
        )


def _normalized(x: Tensor, how: str) -> Tensor:
    if how == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
        return x / (x.std(-1, keepdim=True) + 1e-5)
    if how == "constant_norm_rescale":
        return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))
    return x


def _site(config: dict[str, Any]) -> Site | None:
    named = config.get("hook_name") or (config.get("metadata") or {}).get("hook_name")
    if not named:
        return None
    try:
        return Site.parse(str(named))
    except UserError:
        return None
