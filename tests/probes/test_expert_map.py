"""Expert map: a planted expert is found with its exact share, padding and template tokens do not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probes.experts.mapping as mapping
from probes.experts.counting import content, count_experts
from probes.experts.mapping import ExpertMap, expert_map
from tests.tiny import MOE_FAMILIES, tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts
from workbench.prompts.encode import encode

LAYER, EXPERT = 1, 5
LETTER = "a"


def planted(seed: int = 0) -> AdaptedModel:
    """A Qwen3-MoE in which exactly the tokens "a" select expert (1, 5)."""
    hf = tiny_model("qwen3moe", seed=seed)
    marked = tokenizer()(LETTER, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, 0] = -8.0
        hf.model.embed_tokens.weight[marked, 0] = 8.0
        hf.model.layers[0].self_attn.o_proj.weight.zero_()
        hf.model.layers[1].self_attn.o_proj.weight.zero_()
        hf.model.layers[0].mlp.experts.down_proj.zero_()
        hf.model.layers[1].post_attention_layernorm.weight.fill_(1.0)
        hf.model.layers[0].mlp.gate.weight.zero_()
        hf.model.layers[2].mlp.gate.weight.zero_()
        router = hf.model.layers[1].mlp.gate.weight
        router.mul_(0.01)
        router[EXPERT] = 0.0
        router[EXPERT, 0] = 5.0
    return AdaptedModel(hf, tokenizer(), role="model", name="planted")


def prompts() -> Prompts:
    """Target prompts hold 1 to 4 marked letters, the others none; lengths differ."""
    texts = [("a" * (1 + n % 4) + "xyz"[: n % 3] + "qqqq", "yes") for n in range(12)]
    texts += [("q" * (3 + n % 4) + "xyz"[: n % 3], "no") for n in range(12)]
    return Prompts.of([{"prompt": text, "label": label} for text, label in texts])


def test_the_planted_expert_comes_first_with_its_exact_share() -> None:
    model, rows = planted(), prompts()
    found = expert_map(model, rows, target="yes", batch_size=5)
    marked = tokenizer()(LETTER, add_special_tokens=False)["input_ids"]
    ids = encode(rows, tokenizer())
    shares = [np.isin(row, marked).mean() for row in ids]
    top = found.frame().iloc[0]
    assert (top.layer, top.expert) == (LAYER, EXPERT) and found.ranking(1) == ["L1E5"]
    assert top.score == pytest.approx(np.mean(shares[:12]), abs=1e-6)
    assert top.other_share == 0.0 and top.q < 0.01 and top.low > 0 and top.score > top.control_high
    assert top.top_share == 1.0 and found.provenance.forward_passes == 5 and model.n_hooks == 0


def test_token_rate_pools_tokens_of_a_class() -> None:
    found = expert_map(planted(), prompts(), target="yes", score="token_rate", test="permutation", draws=400)
    marked = tokenizer()(LETTER, add_special_tokens=False)["input_ids"]
    ids = encode(prompts(), tokenizer())[:12]
    top = found.frame().iloc[0]
    assert (top.layer, top.expert) == (LAYER, EXPERT)
    assert top.score == pytest.approx(np.isin(np.concatenate(ids), marked).mean(), abs=1e-6)
    assert top.q < 0.05


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_counts_equal_the_router_row_by_row(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer(), role="model")
    ids = encode(["aqz", "the quick brown fox", "b"], tokenizer())
    (counted,) = count_experts(model, ids, [content(ids, "none", [])], batch_size=3)
    assert counted.layers == model.moe_layers
    for number, row in enumerate(ids):
        for place, layer in enumerate(model.moe_layers):
            seen: list[torch.Tensor] = []
            with model.hooked([SiteHook(Site("router", layer), lambda value, ctx: seen.append(value.experts))]):  # noqa: B023
                model.forward(torch.tensor([row]))
            alone = np.bincount(seen[0].flatten().numpy(), minlength=model.n_experts)
            assert np.abs(counted.counts[number, place] - alone).sum() <= 2, "a near tie may fall either way"
    assert np.allclose(counted.shares.sum(-1), model.top_k)


def test_a_pair_shows_what_tuning_changed_and_not_what_the_topic_uses() -> None:
    """The tuned model sends the letter to expert (1, 5); expert (0, 3) reads the letter in both models."""

    class Pair:
        base, tuned = planted(), planted()

    for model in (Pair.base, Pair.tuned):
        with torch.no_grad():
            model.hf.model.layers[0].post_attention_layernorm.weight.fill_(1.0)
            model.hf.model.layers[0].mlp.gate.weight[3, 0] = 5.0
    with torch.no_grad():
        Pair.base.hf.model.layers[1].mlp.gate.weight[EXPERT, 0] = -5.0
    found = expert_map(Pair, prompts(), target="yes", draws=100)
    top = found.frame().iloc[0]
    assert (top.layer, top.expert) == (LAYER, EXPERT) and found.reference == "base"
    topical = found.table[(found.table.layer == 0) & (found.table.expert == 3)].iloc[0]
    assert topical.score == 0 and topical.q == 1 and topical.unreferenced > 0.25 and topical.target_share > 0.25
    plain = expert_map(Pair, prompts(), target="yes", draws=100, reference=None).ranking(2)
    assert set(plain) == {"L0E3", f"L{LAYER}E{EXPERT}"}


def test_base_against_base_shows_nothing() -> None:
    class Pair:
        base, tuned = planted(), planted()

    found = expert_map(Pair, prompts(), target="yes", draws=50)
    assert (found.table.score == 0).all() and (found.table.q == 1).all()


def test_template_tokens_are_what_all_prompts_share_at_both_ends() -> None:
    rows = [[1, 7, 8, 20, 21, 9], [1, 7, 8, 30, 9], [1, 7, 8, 20, 9]]
    kept = content(rows, "template", [1])
    assert [mask.tolist() for mask in kept] == [
        [False, False, False, True, True, False], [False, False, False, True, False], [False, False, False, True, False]
    ]  # fmt: skip
    assert [mask.sum() for mask in content(rows, "special", [1])] == [5, 4, 4]
    assert [mask.sum() for mask in content(rows, [7, 9], [])] == [4, 3, 3]
    with pytest.raises(UserError, match="no token left"):
        content([[1, 7, 9], [1, 7, 9]], "template", [1])


def test_labels_of_the_response_and_both_phases_apart() -> None:
    model, rows = planted(), prompts()
    answers = ["aaaa"] * 12 + ["qqq"] * 12
    found = expert_map(model, rows, lambda response, row: "a" in response, phase="both", responses=answers)
    top = found.phase_table("decode").iloc[0]
    assert (top.layer, top.expert, top.score) == (LAYER, EXPERT, 1.0)
    assert found.phases == ("prefill", "decode") and set(found.table.phase) == {"prefill", "decode"}
    first = expert_map(model, rows, lambda response, row: "a" in response, responses=answers)
    assert np.allclose(first.phase_table().score, found.phase_table("prefill").score, atol=1e-9)


def test_generated_responses_are_labelled_and_counted() -> None:
    model, rows = planted(), prompts()[:8]
    seen: list[str] = []

    def label(response: str, row: object) -> bool:
        seen.append(response)
        return len(seen) % 2 == 0

    found = expert_map(model, rows, label, phase="decode", max_new_tokens=4)
    assert seen == model.generate(rows, max_new_tokens=4) and found.responses == seen
    assert found.provenance.forward_passes == 4 + 1


def test_shuffled_labels_find_nothing() -> None:
    """Twenty seeds of random labels: at most 5 % of the maps may report a cell."""
    model, rows = planted(), prompts()[:12]
    flags = []
    for seed in range(20):
        labels = np.random.default_rng(seed).permutation([True, False] * 6).tolist()
        flags.append((expert_map(model, rows, labels, draws=50, seed=seed).table.q < 0.05).any())
    assert np.mean(flags) <= 0.05


def test_of_two_classes_the_rarer_is_the_behaviour_unless_said() -> None:
    few = prompts()[[0, 1, 2, 3, *range(12, 24)]]
    assert expert_map(planted(), few, draws=20).target == "yes"
    assert expert_map(planted(), few, target="no", draws=20).target == "no"


def test_errors_say_what_to_do() -> None:
    dense = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    with pytest.raises(UserError, match="no mixture-of-experts layer"):
        expert_map(dense, prompts(), target="yes")
    model = planted()
    with pytest.raises(UserError, match="all are 'yes'"):
        expert_map(model, prompts()[:12], target="yes")
    with pytest.raises(UserError, match=r"target='a'.* labels are a, b, c"):
        expert_map(model, prompts(), ["a", "b", "c"] * 8)
    with pytest.raises(UserError, match="Did you mean 'yes'"):
        expert_map(model, prompts(), target="yess")
    with pytest.raises(UserError, match="Did you mean 'batch_size'"):
        expert_map(model, prompts(), target="yes", batchsize=2)
    with pytest.raises(UserError, match="3 labels for 24"):
        expert_map(model, prompts(), [1, 0, 1])
    with pytest.raises(UserError, match="no phase 'decode'"):
        expert_map(model, prompts(), target="yes").ranking(phase="decode")


def test_a_result_is_saved_drawn_and_read_back(tmp_path: object) -> None:
    found = expert_map(planted(), prompts(), target="yes", draws=50)
    back = ExpertMap.load(found.save(f"{tmp_path}/map"))
    assert back.frame().equals(found.frame()) and back.stability == found.stability
    figure = found.figure()
    assert figure.data[0].z.shape == (3, 8) and [LAYER, EXPERT] in [list(cell) for cell in figure.data[-1].customdata]
    assert "q < 0.05" in found.summary() and mapping.ExpertMap.title in found._repr_html_()
