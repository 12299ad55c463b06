"""Circuits: equal to a mean ablation written with plain hooks; a planted circuit is faithful, complete and minimal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.paths.ablation import Kept, mean_ablation
from probes.paths.circuit_result import CircuitTest
from probes.paths.circuits import circuit
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.probes.test_patching import Pair
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

PLANTED = {"after": ["L0H0"], "last": ["L1H0"]}


class Planted:
    """The hand-built model as base, and with another noise as tuned."""

    def __init__(self, seed: int = 1) -> None:
        self.base, self.tuned = induction_model(), induction_model(seed)
        self.base.role, self.tuned.role = "base", "tuned"
        self.models = {"base": self.base, "tuned": self.tuned}


def rows(n: int = 6) -> Prompts:
    words = ["fox", "dog", "the", "lazy"]
    made = [
        {"prompt": f"{words[i % 4]} {words[(i // 2) % 4]} jumps", "answer": " over", "distractor": " dog", "box": -3}
        for i in range(2 * n)
    ]
    lengths = [len(tokenizer()(row["prompt"])["input_ids"]) for row in made]
    common = Counter(lengths).most_common(1)[0][0]
    return Prompts.of([row for row, length in zip(made, lengths, strict=True) if length == common][:n])


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox", "qwen3moe"])
def test_scores_equal_a_mean_ablation_written_with_plain_hooks(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer())
    prompts = rows()
    parts = frozenset({("last", (2, 1)), ("box", (0, 3)), ("all", (1, 0))})
    run = mean_ablation(model, prompts, prompts, "logit_diff", batch_size=4, max_tokens=1)
    scores = run.scores([Kept(parts), Kept(parts, everything_else=True), Kept(frozenset(), everything_else=True)])
    ids = model.encode(prompts).input_ids
    outputs = [
        model.hub.module(site)
        for site in (model.expand("z", [0]) + model.expand("z", [1]) + model.expand("z", [2]))
    ]  # fmt: skip
    means: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: means.append(args[0].detach().mean(0)))
        for module in outputs
    ]
    with torch.no_grad():
        model.inner(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    over, dog = (tokenizer()(word, add_special_tokens=False)["input_ids"][0] for word in (" over", " dog"))
    for column, inside in ((0, True), (1, False)):

        def ablate(layer: int, inside: bool = inside) -> object:
            def hook(module: object, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                x, mean = args[0].unflatten(-1, (4, -1)), means[layer].unflatten(-1, (4, -1))
                new = mean.expand_as(x).clone() if inside else x.clone()
                chosen = {0: (-3, 3), 1: (slice(None), 0), 2: (-1, 1)}[layer]
                new[:, chosen[0], chosen[1]] = (x if inside else mean[None].expand_as(x))[:, chosen[0], chosen[1]]
                return (new.flatten(-2),)

            return hook

        handles = [module.register_forward_pre_hook(ablate(layer)) for layer, module in enumerate(outputs)]
        with torch.no_grad():
            wanted = model.inner(ids, use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
        assert scores[:, column] == pytest.approx((wanted[:, over] - wanted[:, dog]).numpy(), rel=1e-3, abs=1e-4)
    whole = model.forward(ids)[:, -1]
    assert scores[:, 2] == pytest.approx((whole[:, over] - whole[:, dog]).numpy(), rel=1e-4)
    assert np.abs(scores[:, :2] - scores[:, 2:]).max() > 1e-2 and model.n_hooks == 0


def test_the_planted_circuit_is_faithful_complete_and_minimal_in_both_models() -> None:
    found = circuit(Planted(), repeated_pairs(40), PLANTED, reference=repeated_pairs(200, seed=7), minimality=True)
    assert set(found.table.model) == {"base", "tuned"}
    assert (found.table.score == 1).all() and (found.table.full == 1).all() and (found.table["empty"] < 0.4).all()
    assert (found.table.control < 0.5).all() and (found.table.p < 0.2).all(), "one of 16 random circuits is this one"
    assert found.minimality is not None and found.minimality.kept.all() and (found.minimality.low > 0.3).all()
    assert found.minimal("base") == {"after": ["L0H0"], "last": ["L1H0"]}
    whole = found.completeness[found.completeness.removed == "last"]
    assert (whole.score < 0.05).all(), "without the induction head neither the circuit nor the model answers"


def test_half_a_circuit_and_the_wrong_heads_are_not_faithful() -> None:
    prompts, reference = repeated_pairs(40), repeated_pairs(100, seed=7)
    half = circuit(induction_model(), prompts, {"last": ["L1H0"]}, reference=reference)
    wrong = circuit(induction_model(), prompts, {"after": ["L0H1"], "last": ["L1H1"]}, reference=reference)
    assert half.table.score[0] < 0.5 and wrong.table.score[0] < 0.5 and (wrong.table.q > 0.05).all()
    spare = circuit(induction_model(), prompts, {"after": ["L0H0", "L0H1"], "last": ["L1H0"]}, reference=reference,
                    minimality=True, redundant=0.0)  # fmt: skip
    assert spare.minimality is not None and list(spare.minimality.kept) == [True, False, True]


def test_redundant_heads_are_needed_once_their_companion_is_gone() -> None:
    """Two equal induction heads: removing one alone changes nothing; the companion rule calls both needed."""
    model = induction_model()
    attention = model.hf.transformer.h[1].attn
    with torch.no_grad():
        for part in range(3):
            at = part * 64
            attention.c_attn.weight[:, at + 32 : at + 64] = attention.c_attn.weight[:, at : at + 32]
        attention.c_proj.weight[32:64] = attention.c_proj.weight[:32]
    asked = {"after": ["L0H0"], "last": ["L1H0", "L1H1"]}
    alone = circuit(model, repeated_pairs(30), asked, minimality=True, redundant=0.0)
    paired = circuit(model, repeated_pairs(30), asked, minimality=True)
    assert alone.minimality is not None and list(alone.minimality.kept) == [True, False, False]
    assert paired.minimality is not None and list(paired.minimality.kept) == [True, True, True]


def test_base_against_itself_is_equally_faithful() -> None:
    base = tiny_model("llama")
    pair = Pair(base, tuned_copy(base, size=0.0))
    found = circuit(pair, rows(), ["L0H1", "L2H3"], metric="prob", parts=4)
    one, other = (found.table[found.table.model == name].iloc[0] for name in ("base", "tuned"))
    for column in ("score", "low", "high", "control", "full", "circuit"):
        assert one[column] == pytest.approx(other[column], rel=1e-6)


def test_random_circuits_have_as_many_heads_at_each_place_and_none_twice() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    asked = {"last": ["L0H0", "L0H1", "L2H3"], -2: ["L1H1"]}
    found = circuit(model, rows(), asked, metric="prob", controls=30, parts=2)
    assert len(found.random) == 30
    for drawn in found.random:
        assert {place: len(set(labels)) for place, labels in drawn.items()} == {"last": 3, "-2": 1}
    heads = Counter(label for drawn in found.random for label in drawn["last"])
    assert len(heads) == 12, "every head of the model can be drawn, whatever the number of layers"


def test_files_and_figures(tmp_path: Path) -> None:
    found = circuit(Planted(), repeated_pairs(20), PLANTED, minimality=True)
    back = CircuitTest.load(found.save(tmp_path / "circuit"))
    assert back.frame().equals(found.frame()) and back.minimality.equals(found.minimality)
    assert back.completeness.equals(found.completeness) and back.heads == PLANTED
    assert list(found.frame())[:6] == ["model", "score", "low", "high", "control", "q"]
    assert len(found.figure().data) == 2 and "random circuits" in found.summary()
    assert found.provenance.settings["reference_is_the_prompts"] is True and found.provenance.forward_passes > 10


def test_errors_say_what_to_do() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    with pytest.raises(UserError, match="The circuit is empty"):
        circuit(model, rows(), {})
    with pytest.raises(UserError, match="L7H0 does not exist"):
        circuit(model, rows(), ["L7H0"])
    with pytest.raises(UserError, match="no behaviour a circuit could be faithful to"):
        circuit(model, rows(), ["L1H0"])
    with pytest.raises(UserError, match="Unknown metric 'kl'"):
        circuit(model, rows(), ["L1H0"], metric="kl")
    with pytest.raises(UserError, match="at least 10 random draws"):
        circuit(model, rows(), ["L1H0"], metric="prob", controls=3)
    with pytest.raises(UserError, match="neither a number"):
        circuit(model, rows(), {"nowhere": ["L1H0"]}, metric="prob")
