"""Whether an exported recipe computes elsewhere what it computes here: the same tokens through both, logits
compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interventions.exchange.exported_module import STEPS, attach
from interventions.exchange.llama_cpp_target import LlamaCpp
from interventions.recipe import Recipe, as_adapted
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.shares import share_interval
from workbench.typing import Float, Tensor

Runner = Callable[[Sequence[int], bool, int], Tensor]
"""(token ids, steered, how many of them are the prompt) -> logits [pos, vocab]."""
ROUNDING = 32
"""Differences up to so many units in the last place of the largest logit are rounding."""


@dataclass(frozen=True)
class Certificate:
    """What was compared and how far apart it is. Logits are in the model's own units."""

    target: str
    """transformers, peft, llama.cpp or vLLM, with its version."""
    prompts: int
    tokens: int
    """Positions that were compared: of every prompt its last token and the greedy continuation."""
    difference: float
    """Largest difference of a logit between our engine and the target, both with the recipe."""
    equal_tokens: float
    """Share of positions where both choose the same token, both with the recipe."""
    low: float
    high: float
    """Its 95 % interval over prompts."""
    noise: float
    """Largest difference without the recipe: what another engine, or stored weights, do by themselves."""
    noise_equal_tokens: float
    effect: float
    """Largest difference that the recipe makes in our own engine: one that does nothing is not certified."""
    tolerance: float
    """Rounding that is allowed beyond twice the noise."""

    @property
    def holds(self) -> bool:
        """Whether the difference is explained by noise and rounding, and the recipe's own effect is larger."""
        return self.difference <= 2 * self.noise + self.tolerance and self.effect > self.difference

    def to_dict(self) -> dict[str, Any]:
        """Everything, with the verdict."""
        return {**asdict(self), "holds": self.holds}

    def summary(self) -> str:
        """One sentence for people."""
        return (
            f"{'Holds' if self.holds else 'Does not hold'}: over {self.tokens} tokens of {self.prompts} prompts the "
            f"logits of {self.target} differ by at most {self.difference:.3g} (without the recipe {self.noise:.3g}; "
            f"the recipe itself moves them by {self.effect:.3g}), and {self.equal_tokens:.1%} [{self.low:.1%}, "
            f"{self.high:.1%}] of the greedy tokens are equal (without the recipe {self.noise_equal_tokens:.1%})."
        )


def certify(
    model: Any,
    recipe: Recipe,
    target: str | Path,
    prompts: Any,
    *,
    weights: str | Path | None = None,
    plain: str | Path | None = None,
    engine_settings: Mapping[str, Any] | None = None,
    max_new_tokens: int = 16,
) -> Certificate:
    """Run the same token ids through our engine with ``recipe`` and through what was exported, and compare logits.

    Our own greedy continuation is given to both, so that one different token does not make all later ones differ. The
    noise is the same comparison without the recipe: our engine against the target's model as it is.

    Args:
        model: The model that the recipe was exported for: an AdaptedModel, or a Hugging Face model.
        recipe: The recipe as it is here.
        target: What was exported: a folder of weights, of a PEFT adapter or of a module, or a .gguf control vector.
            "vllm": vLLM with the recipe itself, as it serves it per request.
        prompts: What is run, a few dozen of the kind that will be served.
        weights: For a control vector: the model's own .gguf file, which llama.cpp runs.
        plain: For folders: the model as it was, for the noise; by default the noise of a folder is our engine against
            a plain copy of the same weights.
        engine_settings: For vLLM: what ``vllm.LLM`` is opened with.
        max_new_tokens: Tokens of the greedy continuation of each prompt.

    Returns:
        The certificate; :attr:`Certificate.holds` is the verdict.

    Raises:
        UserError: The target is none of these, or a control vector comes without ``weights``.

    Example:
        >>> certify(pair.tuned, recipe, "baked/", ["What is a monkey?"]).summary()  # doctest: +SKIP
    """
    adapted, rows = as_adapted(model), Prompts.of(prompts)
    recipe.check(adapted)
    kind = target_kind(Path(target), weights)
    ids = encode(rows, adapted.tokenizer, adapted.max_positions)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: give 1 or more.")
    own = _own(adapted, recipe)
    with recipe.applied(adapted):
        whole = [adapted.generate_ids(adapted.encode(rows[number : number + 1]), max_new_tokens=max_new_tokens)[0]
                 for number in range(len(rows))]  # fmt: skip
    texts = [text.tolist() for text in whole]
    with _runner(kind, adapted, recipe, Places(Path(target), weights, plain), texts, engine_settings) as (name, run):
        compared = [_compared(own, run, text, len(prompt) - 1) for text, prompt in zip(texts, ids, strict=True)]
    return _certificate(name, compared, adapted.dtype)


def target_kind(target: Path, weights: str | Path | None) -> str:
    """vllm, model, adapter, module or gguf. Raises :class:`UserError` for anything else, before a model is loaded."""
    if str(target) == "vllm" and not target.exists():
        return "vllm"
    if target.suffix.lower() == ".gguf" and target.is_file():
        if weights is None:
            raise UserError(f"{target} is a control vector: give the model's own .gguf file as weights, for llama.cpp.")
        return "gguf"
    if (target / "adapter_config.json").is_file():
        return "adapter"
    if (target / STEPS).is_file():
        return "module"
    if (target / "config.json").is_file():
        return "model"
    raise UserError(
        f"{target} is no export that can be run: give a .gguf control vector, an adapter's, module's or model's folder "
        "from  tunescope recipe export,  or vllm."
    )


@dataclass(frozen=True)
class _Compared:
    """One prompt: largest differences, and where both choose the same token [token]."""

    difference: float
    noise: float
    effect: float
    size: float
    equal: np.ndarray
    noise_equal: np.ndarray


def _own(model: AdaptedModel, recipe: Recipe) -> Runner:
    def run(ids: Sequence[int], steered: bool, prompt: int) -> Tensor:
        batch = torch.tensor([list(ids)])
        with recipe.applied(model, prompt_lengths=prompt) if steered else model.active():
            logits = model.forward(batch)
        assert logits is not None
        return logits[0].float().cpu()

    return run


def _compared(own: Runner, target: Runner, ids: Sequence[int], start: int) -> _Compared:
    """From the prompt's last token on; the last token's own successor is not known, its logits are compared too."""
    ours, theirs = (run(ids, True, start + 1)[start:] for run in (own, target))
    plain_ours, plain_theirs = (run(ids, False, start + 1)[start:] for run in (own, target))
    vocab = min(ours.shape[1], theirs.shape[1])
    ours, theirs, plain_ours, plain_theirs = (logits[:, :vocab] for logits in (ours, theirs, plain_ours, plain_theirs))
    return _Compared(
        _apart(ours, theirs), _apart(plain_ours, plain_theirs), _apart(ours, plain_ours), float(ours.abs().max()),
        (ours.argmax(1) == theirs.argmax(1)).numpy(), (plain_ours.argmax(1) == plain_theirs.argmax(1)).numpy(),
    )  # fmt: skip


def _apart(a: Float[Tensor, "pos vocab"], b: Float[Tensor, "pos vocab"]) -> float:
    return float((a - b).abs().max())


def _certificate(name: str, compared: list[_Compared], dtype: torch.dtype) -> Certificate:
    hits = np.concatenate([text.equal for text in compared])
    prompt = np.repeat(np.arange(len(compared)), [len(text.equal) for text in compared])
    share = share_interval(hits, clusters=prompt if len(compared) > 1 else None)
    return Certificate(
        target=name, prompts=len(compared), tokens=len(hits),
        difference=max(text.difference for text in compared),
        equal_tokens=share.estimate, low=share.low, high=share.high,
        noise=max(text.noise for text in compared),
        noise_equal_tokens=float(np.concatenate([text.noise_equal for text in compared]).mean()),
        effect=max(text.effect for text in compared),
        tolerance=ROUNDING * torch.finfo(dtype).eps * max(text.size for text in compared),
    )  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where an export lies, and what it is run with."""

    target: Path
    weights: str | Path | None
    plain: str | Path | None


@contextmanager
def _runner(
    kind: str,
    model: AdaptedModel,
    recipe: Recipe,
    places: Places,
    texts: Sequence[Sequence[int]],
    settings: Mapping[str, Any] | None,
) -> Iterator[tuple[str, Runner]]:
    if kind == "vllm":
        with _in_vllm(model, recipe, settings) as (name, run):
            yield name, run
        return
    if kind == "gguf":
        llama = LlamaCpp(Path(str(places.weights)), places.target, max(64, max(map(len, texts)) + 1))
        try:
            yield (
                f"llama.cpp (llama-cpp-python {llama.version})",
                lambda ids, steered, _prompt: llama.logits(ids, steered=steered),
            )
        finally:
            llama.close()
        return
    import transformers

    with ExitStack() as stack:
        steered = _loaded(kind, model, places.target)
        unsteered = _unsteered(model, places.plain)
        stack.callback(steered.cpu)
        named = {"adapter": "a PEFT adapter", "module": "the exported module"}
        version = named.get(kind, f"transformers {transformers.__version__}")
        read = _written_logits if kind == "module" else _plain_logits
        yield version, lambda ids, on, prompt: read(steered if on else unsteered, ids, prompt)


@contextmanager
def _in_vllm(model: AdaptedModel, recipe: Recipe, settings: Mapping[str, Any] | None) -> Iterator[tuple[str, Runner]]:
    from workbench.vllm.route import engine_version, route_of
    from workbench.vllm.routing import routed

    with routed({model.role: model}, "vllm", settings):
        route = route_of(model)
        assert route is not None

        def run(ids: Sequence[int], steered: bool, prompt: int) -> Tensor:
            hooks = {0: recipe.row_hooks(model)} if steered else {}
            return route.engine.logits(model.role, [ids], model, [len(ids)], hooks, {0: prompt})[0]

        yield engine_version(), run


def _unsteered(model: AdaptedModel, plain: str | Path | None) -> Any:
    from workbench.models.export import plain_copy

    if plain is None:
        with model.active():
            return plain_copy(model).eval()
    return _from_folder(Path(plain), model)


def _loaded(kind: str, model: AdaptedModel, target: Path) -> Any:
    """The export as its own library loads it."""
    if kind == "model":
        return _from_folder(target, model)
    if kind == "module":
        made = _unsteered(model, None)
        attach(made, target)
        return made
    import peft

    return peft.PeftModel.from_pretrained(_unsteered(model, None), target).eval()


def _from_folder(folder: Path, model: AdaptedModel) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).to(model.device).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be loaded as a model: {str(error).splitlines()[0][:160]}") from error


@torch.no_grad()
def _written_logits(hf: Any, ids: Sequence[int], prompt: int) -> Tensor:
    """As ``generate`` runs a model: the prompt in one pass, then a token at a time from the cache."""
    tokens, cache, parts = torch.tensor([list(ids)], device=hf.device), None, []
    for start, end in [(0, prompt), *((place, place + 1) for place in range(prompt, len(ids)))]:
        out = hf(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits[0])
    return torch.cat(parts).float().cpu()


@torch.no_grad()
def _plain_logits(hf: Any, ids: Sequence[int], _prompt: int) -> Tensor:
    logits: Tensor = hf(input_ids=torch.tensor([list(ids)], device=hf.device), use_cache=False).logits
    return logits[0].float().cpu()
