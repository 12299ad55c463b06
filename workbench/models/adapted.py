"""One side of a pair: a plain Hugging Face model with names for its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from workbench.cards import card
from workbench.engine.hub import Hub, SiteHook, StopForward, hub_of
from workbench.engine.sites import Site, expand_sites
from workbench.errors import UserError
from workbench.prompts.encode import Encoded, encode, pad_left
from workbench.typing import Float, Int, Tensor

if TYPE_CHECKING:
    from workbench.models.identity import ModelIdentity
    from workbench.models.origin import Origin

NEW_TOKENS = 64
"""How many tokens ``generate`` adds where nothing else is asked for."""
Role = Literal["base", "tuned", "model"]
Switch = Callable[[Any], Any]
"""Turns the adapter on or off and returns how it was before."""


class AdaptedModel:
    """A causal language model, or one view (adapter off / on) of a model that holds an adapter.

    ``hf`` is the Hugging Face object itself. Of an adapter pair both views share it, and outside a context it
    runs as the tuned model: go through this object, or inside ``with model.active():``.
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        *,
        name: str = "model",
        role: Role = "model",
        switch: Switch | None = None,
        identify: Callable[[], ModelIdentity] | None = None,
        stored_as: str | None = None,
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name
        self.role: Role = role
        self._switch = switch
        self._identify = identify
        self._identity: ModelIdentity | None = None
        self.stored_as = stored_as
        """How its weights are quantized where they are stored (``GGUF Q4_1``); None: they are not."""
        self.origin: Origin | None = None
        """Where it was loaded from, for other processes; None of a model that was given loaded."""
        self._sites: list[str] | None = None
        self.hub: Hub = hub_of(hf)
        geometry = self.hub.geometry
        self.n_layers, self.d_model = geometry.n_layers, geometry.d_model
        self.n_heads, self.n_kv_heads, self.d_head = geometry.n_heads, geometry.n_kv_heads, geometry.d_head
        self.n_experts, self.top_k = geometry.n_experts, geometry.top_k
        self.moe_layers = geometry.moe_layers
        self.vocab_size, self.max_positions = geometry.vocab_size, geometry.max_positions

    def __repr__(self) -> str:
        experts = f", {self.n_experts} experts (top {self.top_k})" if self.n_experts else ""
        return (
            f"AdaptedModel({self.name!r}, {self.role}, {self.inner.config.model_type}, {self.n_layers} layers x "
            f"{self.n_heads} heads of {self.d_head}, d_model {self.d_model}{experts}, {self.dtype}, {self.device})"
        )

    def facts(self) -> dict[str, Any]:
        """What a person wants to know first: name, architecture, sizes, where it is."""
        experts = {"experts": f"{self.n_experts} (top {self.top_k})"} if self.n_experts else {}
        return {
            "name": self.name,
            "architecture": self.inner.config.model_type,
            "layers x heads": f"{self.n_layers} x {self.n_heads} of {self.d_head}",
            "d_model": self.d_model,
            **experts,
            "vocabulary": self.vocab_size,
            "weights": f"{self.dtype} on {self.device}".removeprefix("torch."),
            **({} if self.stored_as is None else {"stored as": self.stored_as}),
        }

    def _repr_html_(self) -> str:
        return card(f"Model ({self.role})", self.facts())

    @property
    def inner(self) -> Any:
        """The Hugging Face model below a PEFT wrapper; module paths of sites start here."""
        return self.hub.hf

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        embeddings = self.inner.get_input_embeddings()
        device: torch.device = embeddings.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def weightless(self) -> bool:
        """Whether it was loaded as a shape alone (``device="meta"``), for a service that holds the weights."""
        embeddings = self.inner.get_input_embeddings().weight
        return embeddings.device.type == "meta" and not getattr(self.inner, "hf_device_map", None)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.inner.dtype

    @property
    def identity(self) -> ModelIdentity:
        """Hashes of weights, adapter and tokenizer; computed once, when first asked for."""
        if self._identity is None:
            if self._identify is None:
                from workbench.models.identity import identify

                self._identity = identify(self.hf, self.tokenizer, name=self.name)
            else:
                self._identity = self._identify()
        return self._identity

    @property
    def n_hooks(self) -> int:
        """Hooks of Tunescope on the model now; 0 outside every context."""
        return self.hub.n_hooks

    def sites(self) -> list[str]:
        """Canonical names of every site this model has; experts once per layer (``blocks.L.mlp.expert``)."""
        if self._sites is None:
            self._sites = self.hub.sites()
        return list(self._sites)

    def expand(self, sites: str | Site | Sequence[str | Site], layers: Any = None) -> list[Site]:
        """The sites asked for, with their layers, in the order of computation; see :func:`expand_sites`."""
        return expand_sites(sites, layers, self.n_layers, self.sites())

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Make this view the one that ``hf`` computes, and hold the model for this thread.

        Raises :class:`workbench.errors.ModelBusy` when another thread holds it.
        """
        hub = self.hub
        with hub.owned(), ExitStack() as stack:
            stack.callback(setattr, hub, "view", hub.view)
            hub.view = self.role
            if self._switch is not None:
                before = self._switch(self.role != "base")
                stack.callback(self._switch, before)
            yield self.hf

    @contextmanager
    def hooked(
        self,
        hooks: Sequence[SiteHook],
        *,
        stop: bool = False,
        prompt_lengths: Int[Tensor, " row"] | None = None,
    ) -> Iterator[Any]:
        """Hooks at sites for the time of the context; see :meth:`workbench.engine.hub.Hub.hooked`."""
        with self.active() as hf, self.hub.hooked(hooks, stop=stop, prompt_lengths=prompt_lengths):
            yield hf

    def encode(self, prompts: Any) -> Encoded:
        """Token ids of prompts (text, chat messages or :class:`Prompts`), padded on the left, on the model's device.

        A chat template is applied once. Raises :class:`UserError` for a prompt longer than the context.
        """
        if self.tokenizer is None:
            raise UserError("This model has no tokenizer: load it with one, or pass token ids (Encoded).")
        ids = encode(prompts, self.tokenizer, self.max_positions)
        return pad_left(ids, pad_id(self.tokenizer)).to(self.device)

    def forward(
        self,
        batch: Encoded | Tensor,
        *,
        logits: Literal["all", "last"] | int | None = "all",
        grad: bool = False,
    ) -> Float[Tensor, "batch pos vocab"] | None:
        """One forward pass. ``logits``: of all positions, of the last column only, of so many last columns, or none (no
        vocabulary projection).

        Without padding the model is called exactly as ``hf(input_ids)``; with padding the mask and the position
        ids that absolute-position models need are passed too. Gradients are kept when ``grad``.
        """
        ids, mask = (batch, None) if isinstance(batch, Tensor) else (batch.input_ids, batch.attention_mask)
        call: dict[str, Any] = {"input_ids": ids.to(self.device), "use_cache": False}
        if mask is not None and not bool(mask.all()):
            mask = mask.to(self.device)
            call |= {"attention_mask": mask, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
        if logits == "last" or isinstance(logits, int):
            call["logits_to_keep"] = 1 if logits == "last" else logits
        with self.active(), torch.set_grad_enabled(grad):
            try:
                if logits is None:
                    self.inner.base_model(**call)
                    return None
                return self.inner(**call).logits
            except StopForward:
                return None

    def generate(self, prompts: Any, *, special_tokens: bool = False, **options: Any) -> list[str]:
        """Continue prompts and return the new text of each, in order (``num_return_sequences`` texts per prompt).

        ``options`` go to Hugging Face's ``generate``; greedy (``do_sample=False``) and ``NEW_TOKENS`` (64) new tokens,
        or as many as the model has positions for, unless they or the model's own generation config say otherwise.
        """
        batch = prompts if isinstance(prompts, Encoded) else self.encode(prompts)
        ids = self.generate_ids(batch, **options)
        new = ids[:, batch.input_ids.shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=not special_tokens)

    def generate_ids(self, batch: Encoded, **options: Any) -> Int[Tensor, "row pos"]:
        """Token ids of prompts and continuations, as Hugging Face's ``generate`` returns them."""
        call: dict[str, Any] = {
            "do_sample": False,
            "attention_mask": batch.attention_mask.to(self.device),
            **options,
        }
        if not self._says_when_to_stop(options):
            room = getattr(self.inner.config, "max_position_embeddings", None) or math.inf
            call["max_new_tokens"] = max(1, min(NEW_TOKENS, room - batch.input_ids.shape[1]))
        if self.tokenizer is not None:
            call.setdefault("pad_token_id", pad_id(self.tokenizer))
        if not call["do_sample"]:
            for unused in ("temperature", "top_p", "top_k"):
                call.setdefault(unused, None)
        with self.active(), torch.no_grad():
            return self.inner.generate(batch.input_ids.to(self.device), **call)

    def _says_when_to_stop(self, options: Mapping[str, Any]) -> bool:
        """Whether the caller, or the model's own generation config, limits the number of new tokens."""
        if options.get("generation_config") is not None:
            return True
        own = getattr(self.inner, "generation_config", None)
        limits = ("max_new_tokens", "max_length")
        return any(options.get(name) is not None or getattr(own, name, None) is not None for name in limits)

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The output embedding matrix W_U."""
        return self.inner.get_output_embeddings().weight

    def to_transformer_bridge(self) -> Any:
        """TransformerLens's ``TransformerBridge`` on a separate copy (adapter merged), weights unprocessed.

        Bridging rewires a model for good, so it never touches this one.
        """
        from workbench.models.export import to_transformer_bridge

        return to_transformer_bridge(self)

    def to_nnsight(self) -> Any:
        """This model inside nnsight's ``TransformersModel``, for your own traces."""
        from workbench.models.export import to_nnsight

        return to_nnsight(self)


def pad_id(tokenizer: Any) -> int:
    """The id that padding is written with: the pad token's, or the end-of-text token's, or 0."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if candidate is not None:
            return int(candidate)
    raise AssertionError
