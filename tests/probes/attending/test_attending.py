"""Heads are profiled and held out, narrowed heads are found, attention to the user's words is what patterns say."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import interventions as iv
import probes
from probes.attending.awareness import dependency
from probes.attending.confidence import entropy_share
from probes.attending.pattern_types import jensen_shannon, typed
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

pytestmark = pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")


def calls_of_attention_tuning() -> Calls:
    given = {
        "edit": "sinks", "layers": [1], "share": 0.3, "threshold": 0.05, "controls": 11, "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(), **given}])


def calls_of_attention_confidence() -> Calls:
    return Calls([{"pair": pair(), "prompts": rows(), "layers": [1], "seed": 3}])


def calls_of_context_awareness() -> Calls:
    given = {"layer": 0, "alphas": [0.8], "threshold": 0.1, "batch_size": 3, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def test_the_profile_is_of_single_heads_and_reported_on_other_prompts() -> None:
    both = pair()
    found = probes.attention_tuning(both, rows(12), edit="first", layers=[0, 1], share=0.25)
    assert len(found.table) == 2 * both.tuned.n_heads and set(found.table["type"]) <= {"up", "down", "neutral"}
    assert len(found.heads) <= 2 and (found.table.loc[found.table["type"] == "neutral", "score"] <= 0).all()
    lines = found.held_out.set_index("model")
    assert lines.loc["plain", "gain"] == 0 and {"chosen heads", "all heads"} <= set(lines.index)
    assert found.figure().data and "held-out gain" in found.summary()
    assert probes.attention_tuning(both, rows(12), layers=[0], controls=0).held_out["model"].tolist()[-1] == "all heads"


def own_words(both: ModelPair, n: int) -> list[dict[str, str]]:
    """Prompts with the tuned model's own next word as the answer."""
    texts = [f"the {a} fox saw {b}" for a in "abcdefgh" for b in ("me", "you")][:n]
    ids = [both.tuned.encode([text]).input_ids for text in texts]
    words = [tokenizer().decode([int(both.tuned.forward(prompt)[0, -1].argmax())]) for prompt in ids]
    return [{"prompt": text, "answer": word} for text, word in zip(texts, words, strict=True)]


def test_a_head_that_was_made_to_stare_at_the_first_token_is_turned_down() -> None:
    both = pair()
    texts = [word for word in own_words(both, 16) if word["answer"].strip()]
    before = probes.attention_tuning(both, texts, edit="first", layers=[1], controls=0)
    with iv.Recipe([iv.AttentionScale(30.0, ["L1H2"])]).applied(both.tuned):
        found = probes.attention_tuning(both, texts, edit="first", layers=[1], controls=0)
    staring = found.table.set_index("head").loc[2]
    assert staring["gamma"] == 0.6 and staring["type"] == "down"
    assert (found.table["score"] - before.table["score"]).argmax() == 2


def narrowed_pair() -> ModelPair:
    """In layer 1 every head's queries are four times as long after tuning: attention narrows there alone."""
    base = tiny_model("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight.mul_(4.0)
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


def test_narrowed_heads_are_found_where_they_were_planted() -> None:
    texts = [f"the {a} fox saw the {b} dog" for a in ("red", "big", "old") for b in ("sad", "new", "hot")]
    found = probes.attention_confidence(narrowed_pair(), texts)
    by_layer = found.table.groupby("layer")["score"].mean()
    assert by_layer[1] > 0.05 and by_layer[0] == 0 and abs(by_layer[2]) < by_layer[1]
    first = found.table[found.table["layer"] == 1]
    assert (first["q"] < 0.05).all() and (found.table.loc[found.table["layer"] == 0, "q"] == 1).all()
    told = found.positions
    assert (told["gain"] - (told["tuned"] - told["base"])).abs().max() < 1e-12
    first, n = told[(told["prompt"] == 0) & (told["position"] == 0)].iloc[0], int((told["prompt"] == 0).sum())
    assert first["even"] == pytest.approx(sum(1 / (place + 1) for place in range(n)) / n)
    assert "ignored before tuning" in found.summary()
    assert found.positions["gain"].is_monotonic_decreasing and found.figure().data and "narrower" in found.summary()
    assert float(entropy_share(torch.full((1, 4, 4), 0.25).tril())[0, -1]) == pytest.approx(1.0)


def test_tokens_that_no_head_looks_at_any_more_are_ignored() -> None:
    both = pair()
    heads = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    with iv.Recipe([iv.AttentionScale(1000.0, heads)]).applied(both.tuned):
        found = probes.attention_confidence(both, [f"the {a} fox saw {b}" for a in "abcd" for b in "xyz"])
    behind = found.positions[found.positions["position"] > 0]
    assert behind["ignored_tuned"].all() and found.activation["tuned"] == 1.0 > found.activation["base"]
    assert found.activation["low"] > 0 and found.activation["p"] < 0.05


def test_a_base_with_itself_changed_nowhere() -> None:
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer(), check=False)
    found = probes.attention_confidence(same, rows())
    assert (found.table["score"] == 0).all() and (found.table["q"] == 1).all() and (found.positions["gain"] == 0).all()
    assert found.activation["score"] == 0 and found.activation["p"] == 1
    aware = probes.context_awareness(same, rows(), alphas=[1.0])
    assert (aware.table["q"] == 1).all() and (aware.steering["gain"].abs() < 1e-5).all()


def chat_pair() -> ModelPair:
    words = copy.deepcopy(tokenizer())
    words.chat_template = (
        "{% for m in messages %}quick lazy {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} over dog{% endif %}"
    )
    both = pair()
    return load_pair(both.base.hf, both.tuned.hf, tokenizer=words, check=False)


def test_dependency_is_what_the_pattern_pays_to_the_users_words() -> None:
    both = chat_pair()
    given = Prompts.of([{"prompt": f"{one} jumps", "answer": " fox"} for one in "abcdefgh"])
    found = probes.context_awareness(both, given, layer=1)
    assert set(found.table["template"]) == {"on", "off"} and len(found.table) == 4
    scores, even = dependency(both.tuned, given, 1)
    assert ((0 < scores) & (scores < 1)).all() and ((0 < even) & (even < 1)).all()
    read = both.tuned.reads(given)
    ids = torch.tensor([[*read["input_ids"][0], *tokenizer()(" fox", add_special_tokens=False)["input_ids"]]])
    both.tuned.inner.set_attn_implementation("eager")
    with torch.no_grad():
        pattern = both.tuned.inner(ids, output_attentions=True).attentions[1][0]
    both.tuned.inner.set_attn_implementation("sdpa")
    from workbench.engine.template_tokens import TemplateTokens

    n = len(read["input_ids"][0])
    user = torch.tensor(TemplateTokens(both.tuned.tokenizer).content(read["input_ids"][0]))
    wanted = pattern[:, n - 1 : -1, :n][..., user].sum(-1).max(0).values.mean()
    assert scores[0] == pytest.approx(float(wanted), abs=1e-5) and "nats per token" in found.summary()
    with pytest.raises(UserError, match="factors above 0"):
        probes.context_awareness(both, given, alphas=[0.0])


def calls_of_pattern_types() -> Calls:
    given = {"layers": [1], "block": 2, "threshold": 0.2, "coverage": 0.8, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def test_patterns_are_typed_and_covered_by_hand() -> None:
    even = torch.ones(12, 12).tril() / torch.arange(1, 13)[:, None]
    first = torch.zeros(12, 12)
    first[:, 0] = 1.0
    before = torch.diag(torch.ones(11), -1)
    before[0, 0] = 1.0
    found = typed(torch.stack([even, first, before])[None], block=4, threshold=0.1, coverage=0.9)
    assert found.aware[0, 0] and not found.aware[0, 2]  # even attention is foretold by its pools
    seen = sum(range(9, 13))  # pairs of the last four queries
    assert found.index[0, 0] > 0.9 and found.index[0, 1] == pytest.approx(4 * 4 / seen)  # a block
    assert found.index[0, 2] < 0.4  # one diagonal and its columns
    assert float(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))) == pytest.approx(math.log(2))


def test_a_narrowed_head_needs_fewer_pairs_and_a_base_with_itself_the_same() -> None:
    texts = [f"the {a} fox saw the {b} dog" for a in ("red", "big", "old") for b in ("sad", "new", "hot")]
    found = probes.pattern_types(narrowed_pair(), texts, block=3)
    by_layer = found.table.groupby("layer")["score"].mean()
    assert by_layer[1] < 0 and by_layer[0] == 0 and (found.table.loc[found.table["layer"] == 0, "q"] == 1).all()
    assert found.figure().data and "query-aware in the base" in found.summary()
    base = tiny_model("llama")
    same = probes.pattern_types(load_pair(base, base, tokenizer=tokenizer(), check=False), rows(), block=2)
    assert (same.table["score"] == 0).all() and (same.table["q"] == 1).all() and (same.table["switched"] == 0).all()
    with pytest.raises(UserError, match="two blocks of 16"):
        probes.pattern_types(narrowed_pair(), texts[:2])
