"""A base model and its fine-tuned version, seen side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from workbench.cards import card, columns
from workbench.engine.hub import hub_of
from workbench.engine.selfcheck import self_check
from workbench.errors import UserError, unknown_name
from workbench.models import adapters, checkpoints
from workbench.models.adapted import AdaptedModel, Role
from workbench.models.adapter_fit import name_notes, unread_notes
from workbench.models.attachments.attachment import Attachment, Switch
from workbench.models.attachments.stored import attached_identity, attachment_of, attachment_source
from workbench.models.differences import Differences, compare
from workbench.models.identity import ModelIdentity, identify
from workbench.models.loading import (
    brings_tokenizer,
    load_model,
    load_tokenizer,
    quantization,
    read_config,
    same_tokenizer,
)
from workbench.models.origin import Origin, origin_of
from workbench.models.quantized import leave_unpackable
from workbench.models.sources import Kind, Source, describe
from workbench.models.token_rows import embedding_rows, readable_padding, unreadable_tokens

TEMPLATES = ("tuned", "base", "own")
"""Whose chat template prompts are put through."""


@dataclass(frozen=True, eq=False)
class ModelPair:
    """Both models, and what differs between them beside the weights.

    Of a one-copy adapter pair ``base`` and ``tuned`` are views on the same weights with the adapter off and on.
    """

    base: AdaptedModel
    tuned: AdaptedModel
    one_copy: bool
    differences: Differences
    adapter: Any = field(default=None, repr=False)
    """The ``PeftModel`` that carries the adapter, if the tuned model is one."""
    attachment: Attachment | None = field(default=None, repr=False)
    """The side path or prompt rows that the tuned model runs with, if it is its base with one of those."""

    @property
    def models(self) -> dict[str, AdaptedModel]:
        """``{"base": ..., "tuned": ...}``."""
        return {"base": self.base, "tuned": self.tuned}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that both models' prompts go through: the tuned model's, else the base's."""
        return self.tuned.tokenizer

    def __repr__(self) -> str:
        copies = "one copy of the weights" if self.one_copy else "two copies of the weights"
        said = "".join(f"\n  - {sentence}" for sentence in self.differences.sentences())
        return f"ModelPair({copies})\n  base:  {self.base!r}\n  tuned: {self.tuned!r}{said}"

    def _repr_html_(self) -> str:
        base, tuned = self.base.facts(), self.tuned.facts()
        copies = "One copy of the weights." if self.one_copy else "Two copies of the weights."
        names = [*base, *(name for name in tuned if name not in base)]
        sides = {role: [facts.get(name, "") for name in names] for role, facts in (("base", base), ("tuned", tuned))}
        return card("Model pair", table=columns(names, sides), notes=[copies, *self.differences.sentences()])


def load_pair(  # noqa: PLR0913 (the one public call; all but two by keyword)
    base: Any,
    tuned: Any,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    tokenizer: Any = None,
    template: str = "tuned",
    own_generation_config: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    check: bool = True,
) -> ModelPair:
    """Load a base model and its fine-tuned version.

    Each is a folder, a ``.gguf`` file, a hub id (``org/name``, ``org/name@revision``, ``org/name/sub/folder``,
    ``org/name/file.gguf``), a loaded Hugging Face model, a PEFT adapter's folder or hub id, or a ``PeftModel``. The
    tuned one may be an attachment (``interventions.train_side_path`` and its like), itself or its folder. An
    adapter shares its base's weights where switching it off gives the base back exactly (checked); otherwise two copies
    are held, and ``differences`` says so.

    ``device="auto"`` takes CUDA, then Apple's GPU, then the CPU; ``device_map`` goes to accelerate.
    ``template`` is whose chat template prompts are put through: the tuned model's or the base's, for both, or each its
    own. Texts are generated without the rest of either ``generation_config`` than its token ids, as a repetition
    penalty is no part of the weights; ``own_generation_config=True`` keeps it. Both are told in ``differences``.
    ``check`` runs a short self-check of the map of sites. Raises :class:`workbench.errors.UserError` for what
    cannot be loaded or compared, naming what was expected.
    """
    if template not in TEMPLATES:
        raise unknown_name("template", template, TEMPLATES)
    flags: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    from_, to = describe(base, **flags), attachment_source(tuned) or describe(tuned, **flags)
    if from_.is_adapter:
        raise UserError(f"The base {from_.name} is an adapter: give the model it was trained on as the base.")
    if to.is_adapter and str(device) == "meta":
        raise UserError(
            "device='meta' loads names and shapes alone, and that an adapter gives its base back is seen on weights: "
            "load this pair on a device; load_model takes meta for one model."
        )
    load = partial(_loaded, device=device, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
    parts = _load_adapter_pair(from_, to, load) if to.is_adapter else _load_full_pair(from_, to, load)
    reading = _Reading(tokenizer, template, own_generation_config)
    pair = _assemble(from_, to, parts, reading)
    origin = origin_of(
        [from_, to], dtype=dtype, attn_implementation=attn_implementation, tokenizer=tokenizer,
        template=None if template == "tuned" else template, own_generation_config=own_generation_config,
    )  # fmt: skip
    for side in pair.models.values():
        side.origin = None if device_map is not None else origin
    if check and not pair.base.weightless:
        self_check(pair.base.hub)
        if not pair.one_copy:
            self_check(pair.tuned.hub)
    return pair


def load_one(
    model: Any,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
    device_map: Any = None,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> AdaptedModel:
    """Load a single model, for steering or for a look at its sites. Takes what :func:`load_pair` takes for a base."""
    source = describe(model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    if source.is_adapter:
        raise UserError(f"{source.name} is an adapter: load it with its base, as load_pair(base, adapter).")
    hf = _loaded(source, device=device, dtype=dtype, device_map=device_map)
    words, _ = _words(source, tokenizer=tokenizer)
    if words is not None:
        readable_padding(words, embedding_rows(hf))
    loaded = AdaptedModel(hf, words, name=source.name, identify=_identifier(hf, words, source, source, adapter=False))
    loaded.origin = None if device_map is not None else origin_of([source], dtype=dtype, tokenizer=tokenizer)
    if not loaded.weightless:
        self_check(loaded.hub)
    return loaded


def load_again(origin: Origin, device: str) -> ModelPair | AdaptedModel:
    """The pair or the model of ``origin``, on ``device``. It was checked where it was loaded first."""
    if origin.tuned is None:
        return load_one(origin.base, device=device, **origin.options)
    return load_pair(origin.base, origin.tuned, device=device, check=False, **origin.options)


def _loaded(source: Source, **options: Any) -> Any:
    hf = load_model(source, **options)
    leave_unpackable(hf)
    return hf


@dataclass(frozen=True)
class _Parts:
    """Loaded models before they are put side by side."""

    base: Any
    tuned: Any
    adapter: Any = None
    notes: tuple[str, ...] = ()
    attachment: Attachment | None = None
    rewritten: str | None = None
    """Why the tuned model with its adapter off is not the base."""

    @property
    def one_copy(self) -> bool:
        return self.base is self.tuned


def _load_full_pair(base: Source, tuned: Source, load: Callable[[Source], Any]) -> _Parts:
    _check_loadable_together(base, tuned)
    hf = load(base)
    return _Parts(hf, hf if _same_model(base, tuned) else load(tuned))


def _same_model(base: Source, tuned: Source) -> bool:
    """A model against itself (the null comparison) needs one copy only when it is the same loaded object."""
    return base.kind is Kind.LOADED and base.model is tuned.model


def _check_loadable_together(base: Source, tuned: Source) -> None:
    """Refuse a pair of different shapes from the configs alone, before gigabytes are read."""
    from workbench.models.differences import check_same_shape

    check_same_shape(*(read_config(side) if side.model is None else side.model.config for side in (base, tuned)))


def _load_adapter_pair(base: Source, tuned: Source, load: Callable[[Source], Any]) -> _Parts:
    if tuned.kind is Kind.PEFT:
        return _loaded_adapter_pair(base, tuned, load)
    hf = load(base)
    if tuned.kind is Kind.ATTACHED:
        return _attached_pair(hf, attachment_of(tuned))
    before = adapters.snapshot_base(hf)
    peft_model = adapters.attach_adapter(hf, tuned, base_name=base.name)
    reason = adapters.rewrites_base(peft_model, before)
    notes = name_notes(tuned, base.name) + unread_notes(tuned)
    if reason is None:
        return _Parts(peft_model, peft_model, peft_model, notes)
    if base.kind is Kind.LOADED:
        adapters.detach_adapters(hf)
        raise UserError(
            f"This pair needs two copies of the base, because {reason}: give the base as a folder or hub id, "
            "so that it can be loaded twice."
        )
    held = f"Two copies of the weights are held: {reason}."
    return _Parts(load(base), peft_model, peft_model, (held, *notes), rewritten=reason)


def _attached_pair(hf: Any, attachment: Attachment) -> _Parts:
    """One model, with the attachment on and off; nothing of it is changed."""
    place = hf.get_input_embeddings().weight.device
    notes = [f"The tuned model is its base with an attachment ({attachment.kind}): no weight differs."]
    if attachment.rows is not None:
        side = "behind" if attachment.rows.behind else "in front of"
        notes.append(
            f"Prompts get {attachment.rows.count} placeholders (token {attachment.rows.token}) {side} them, which the "
            "base reads as that word and the tuned model as its trained rows."
        )
    return _Parts(hf, hf, notes=tuple(notes), attachment=attachment.to(place))


def _loaded_adapter_pair(base: Source, tuned: Source, load: Callable[[Source], Any]) -> _Parts:
    """A ``PeftModel`` as the tuned model: compare its adapter-off state with the base that was given."""
    peft_model = tuned.model.eval()
    inner = peft_model.get_base_model()
    if base.kind is Kind.LOADED and base.model is inner:
        return _Parts(peft_model, peft_model, peft_model, adapters.taken_from_base(peft_model))
    own = load(base)
    reason = adapters.rewrites_base(peft_model, adapters.snapshot_base(own))
    if reason is None and next(own.parameters()).device == next(inner.parameters()).device:
        return _Parts(peft_model, peft_model, peft_model)
    note = reason or "base and tuned model are on different devices"
    return _Parts(own, peft_model, peft_model, (f"Two copies of the weights are held: {note}.",), rewritten=reason)


@dataclass(frozen=True)
class _Reading:
    """How both models read prompts and write texts."""

    tokenizer: Any
    template: str
    own_generation_config: bool

    def side(self, role: Role, words: Any, base_words: Any) -> Any:
        """The tokenizer of one side: the pair's, with the chat template asked for."""
        if (
            words is None
            or words.chat_template == base_words.chat_template
            or (role, self.template) == ("tuned", "own")
        ):
            return words
        if self.template == "tuned":
            return words
        changed = copy.deepcopy(words)
        changed.chat_template = base_words.chat_template
        return changed


def _assemble(base: Source, tuned: Source, parts: _Parts, reading: _Reading) -> ModelPair:
    words, notes = _words(tuned, base, tokenizer=reading.tokenizer)
    own_words = words if reading.tokenizer is not None else _own_tokenizer(base, tuned, words)
    base_words = words if parts.adapter is not None or parts.attachment is not None else own_words
    bare = [part.get_base_model() if part is parts.adapter else part for part in (parts.base, parts.tuned)]
    notes += _about_rows(words, *map(embedding_rows, bare)) + _about_attention(base, tuned) + _about_shards(base, tuned)
    differences = compare(
        bare[0].config, bare[1].config, base_words, words,
        base_model=bare[0], tuned_model=bare[1], own_base_tok=own_words, notes=parts.notes + notes,
        template=reading.template, own_generation_config=reading.own_generation_config,
        quantized=(quantization(base.config), quantization((base if tuned.is_adapter else tuned).config)),
    )  # fmt: skip
    switch: Any = None if parts.adapter is None else partial(adapters.set_adapter_enabled, parts.adapter)
    if parts.attachment is not None:
        switch = Switch(parts.attachment, hub_of(parts.base))
        words = _with_rows(words, parts.attachment)
        own_words = words

    def side(role: Role, hf: Any, source: Source) -> AdaptedModel:
        own = reading.side(role, words, own_words)
        made = AdaptedModel(
            hf, own, name=source.name, role=role,
            switch=switch if hf is parts.adapter or parts.attachment is not None else None,
            template=role if reading.template == "own" else reading.template,
            own_generation_config=reading.own_generation_config,
            identify=_identifier(hf, own, source, base if source.is_adapter else source, adapter=role == "tuned",
                                 attachment=parts.attachment if role == "tuned" else None),
            stored_as=quantization((base if source.is_adapter else source).config),
        )  # fmt: skip
        made.rewritten = parts.rewritten if role == "tuned" else None
        return made

    return ModelPair(
        base=side("base", parts.base, base),
        tuned=side("tuned", parts.tuned, tuned),
        one_copy=parts.one_copy,
        differences=differences,
        adapter=parts.adapter,
        attachment=parts.attachment,
    )


def _with_rows(words: Any, attachment: Attachment) -> Any:
    """The tokenizer, which puts placeholders for the attachment's rows into the prompts that it encodes."""
    if words is None or attachment.rows is None:
        return words
    changed = copy.deepcopy(words)
    changed.prompt_rows = attachment.rows
    return changed


def _words(*sources: Source, tokenizer: Any) -> tuple[Any, tuple[str, ...]]:
    """As :func:`load_tokenizer`; models that were given loaded may go without, and read token ids alone."""
    loaded = all(source.model is not None and not brings_tokenizer(source) for source in sources)
    if tokenizer is None and loaded:
        return None, ("No tokenizer came with the models: they read token ids alone, texts with tokenizer=.",)
    return load_tokenizer(*sources, tokenizer=tokenizer)


def _about_rows(words: Any, base: int, tuned: int) -> tuple[str, ...]:
    """What the tokenizer ``words`` makes and a model cannot read, in words; its padding is made readable."""
    if words is None:
        return ()
    padding = readable_padding(words, min(base, tuned))
    return unreadable_tokens(words, {"base": base, "tuned": tuned}) + (() if padding is None else (padding,))


def _about_shards(base: Source, tuned: Source) -> tuple[str, ...]:
    """Which of several tensors of one name was read."""
    folders = [source for source in (base, tuned) if source.kind is Kind.MODEL and source.gguf is None]
    readable = [source for source in folders if not checkpoints.is_pickle_only(source.files, adapter=False)]
    return tuple(note for source in readable for note in checkpoints.about_doubled(source.local(), source.name))


def _about_attention(base: Source, tuned: Source) -> tuple[str, ...]:
    """What the config.json of either asks for beside the weights, in words."""
    wanted = {"base": base, "tuned model": tuned}
    names = {
        side: source.config.get("_attn_implementation")
        for side, source in wanted.items()
        if source.kind is Kind.MODEL and source.config.get("_attn_implementation") is not None
    }
    return tuple(
        f"The config of the {side} asks for attention by {name}, which is no part of its weights: both are computed "
        "the same way here (attn_implementation= for another)."
        for side, name in names.items()
    )


def _own_tokenizer(base: Source, tuned: Source, words: Any) -> Any:
    """The base's own tokenizer, to be compared with the tuned model's; ``words``, the pair's, where it is the same."""
    if not brings_tokenizer(base) or not brings_tokenizer(tuned) or same_tokenizer(base, tuned):
        return words
    return load_tokenizer(base)[0]


def _identifier(
    hf: Any, tokenizer: Any, source: Source, weights: Source, *, adapter: bool, attachment: Attachment | None = None
) -> Callable[[], ModelIdentity]:
    """``weights``: where the full weights are, which of an adapter are its base's."""
    folder: Path | None = weights.folder if weights.kind is Kind.MODEL and weights.gguf is None else None

    def identity() -> ModelIdentity:
        own = identify(hf, tokenizer, name=source.name, revision=source.revision, adapter=adapter, folder=folder)
        return own if attachment is None else attached_identity(own, attachment, source.name)

    return identity
