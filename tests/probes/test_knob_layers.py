"""The layer search on stacks whose writing layers are known, its edge cases, and heads patched in a real model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from probes.knob.intents import IntentPairs, intent_pairs
from probes.knob.layers import Curves, PatchedHeads, Thresholds, search_layers
from probes.replay import LastToken
from tests.tiny import tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts

N = 8


def stack(writers: set[int], overwrite: int | None = None) -> Callable[[frozenset[int]], Curves]:
    """Only ``writers`` write what the answer hangs on, and all are needed; ``overwrite`` writes the target back
    over it unless it is patched too."""

    def curves(layers: frozenset[int]) -> Curves:
        carried = len(writers & layers) / len(writers)
        source = np.array([0.0 if layer < max(writers) else float(carried == 1) * 0.98 for layer in range(N)])
        if overwrite is not None and overwrite not in layers:
            source[overwrite:] *= 0.3
        return Curves(source, 0.99 - source)

    return curves


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.85, 0.95])
@pytest.mark.parametrize("writers", [{3}, {5, 6}, {0}, {7}, {0, 7}, {2, 3, 4}])
def test_the_writing_layers_are_found_whatever_the_threshold(writers: set[int], threshold: float) -> None:
    found = search_layers(stack(writers), N, Thresholds(reached=threshold), check_monotone=True)
    assert found.layers == tuple(range(min(writers), max(writers) + 1)) and found.monotone
    assert search_layers(stack(writers), N).steps[0][0] == tuple(range(N)), "the whole stack is evaluated first"


def test_few_sets_are_run_and_none_twice() -> None:
    ran: list[frozenset[int]] = []

    def counted(layers: frozenset[int]) -> Curves:
        ran.append(layers)
        return stack({3})(layers)

    search_layers(counted, N)
    assert len(ran) == len(set(ran)) <= 2 * math.ceil(math.log2(N)) + 2


def test_a_layer_that_writes_over_it_is_added() -> None:
    assert search_layers(stack({3}, overwrite=6), N).layers == (3, 6)


def test_it_ends_where_no_layer_helps_and_says_when_nothing_carries() -> None:
    def never_wins(layers: frozenset[int]) -> Curves:
        return Curves(np.full(N, 0.9 if 2 in layers else 0.0), np.full(N, 0.95))

    assert search_layers(never_wins, N).layers == (2,)
    assert search_layers(lambda layers: Curves(np.zeros(N), np.ones(N)), N).layers == ()


def test_a_stack_where_more_layers_hurt_is_called_not_monotone() -> None:
    def hurts(layers: frozenset[int]) -> Curves:
        helped = 1 in layers and (5 not in layers or 7 in layers)
        return Curves(np.full(N, 0.9 * helped), np.zeros(N))

    assert search_layers(hurts, N, check_monotone=True).monotone is False


def _pairs(model: AdaptedModel) -> IntentPairs:
    rows = [
        {"prompt": f"the {word} {way}", "group": word, "intent": way, "answer": answer}
        for word in ("fox", "dog")
        for way, answer in (("context", "over"), ("prior", "jumps"))
    ]
    return intent_pairs(Prompts.of(rows), model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_patched_heads_equal_a_whole_forward_pass(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer(), role="model")
    pairs = _pairs(model)
    curves = PatchedHeads(LastToken(model, pairs.ids), pairs, torch.tensor([0, 2]))(frozenset({0, 2}))
    expected = []
    for row in (0, 2):
        kept: dict[int, torch.Tensor] = {}

        def keep(layer: int, kept: dict[int, torch.Tensor] = kept) -> SiteHook:
            return SiteHook(Site("z", layer), lambda value, ctx: kept.update({layer: value[:, -1].clone()}))

        def put(layer: int, kept: dict[int, torch.Tensor] = kept) -> SiteHook:
            def edit(value: torch.Tensor, ctx: object) -> torch.Tensor:
                changed = value.clone()
                changed[:, -1] = kept[layer]
                return changed

            return SiteHook(Site("z", layer), edit, edit=True)

        with model.hooked([keep(0), keep(2)]):
            model.forward(torch.tensor([pairs.ids[row + 1]]))
        with model.hooked([put(0), put(2)]):
            logits = model.forward(torch.tensor([pairs.ids[row]]))
        expected.append(logits[0, -1].softmax(-1)[pairs.wanted[row]].item())
    assert curves.source[-1] == pytest.approx(np.mean(expected), abs=1e-5)
