"""Views of unrelated text and weights: each says what was planted, and nothing where its null does as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import interventions as iv
from probes.audits.expert_use import expert_sentence, expert_use
from probes.audits.intruders import intruder_sentence, intruders
from probes.audits.patchscope import patchscope, patchscope_sentence
from probes.audits.readings import difference_lens, lens_sentence, longer_among_nulls, place_among_nulls, position_lens
from probes.audits.steering import PROMPTS, STRENGTH, in_common, steered_sentence, steered_texts
from probes.audits.stream_changes import FIRST, StreamChanges, null_changes, stream_changes
from probes.audits.token_shift import TokenShares, token_sentence, token_shift
from probes.audits.topics import token_topics, topics_sentence
from probes.audits.unrelated_texts import unrelated_views
from tests.probes.test_against_null_adapters import lora_pair
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.behaviour.subject import Work
from workbench.models.null_adapters import null_adapter
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

TEXTS = Prompts.of(["the quick brown fox jumps over", "over the lazy dog", "dog", "the fox and the dog"], chat=False)


def pair_of(base: Any, tuned: Any) -> ModelPair:
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False, device="cpu")


def test_changes_are_those_of_whole_texts_at_their_first_tokens() -> None:
    base = tiny_model("llama")
    pair = pair_of(base, tuned_copy(base))
    changes = stream_changes(pair, TEXTS, None)
    words = tokenizer()
    for number, row in enumerate(TEXTS):
        ids = torch.tensor([words(row.shown)["input_ids"]])
        states = [side.hf.model(ids, output_hidden_states=True).hidden_states[2] for side in (pair.base, pair.tuned)]
        expected = (states[1] - states[0])[0, 1 : FIRST + 1].mean(0)
        assert torch.allclose(changes.by_text[1, number], expected, atol=1e-5)
        for place in changes.places[number]:
            at = changes.by_position[place][1, changes.texts_at(place).index(number)]
            assert torch.allclose(at, (states[1] - states[0])[0, place], atol=1e-5)
    assert changes.of_first(2).by_position[1].shape[1] == 2 and changes.of_first(2).places == changes.places[:2]
    longer = changes.at_stream_length(torch.stack([torch.ones(64), torch.zeros(64)]), 1)
    assert float(longer[0].norm()) == pytest.approx(float(changes.base_median[1])) and not longer[1].any()


def test_null_adapters_change_the_stream_and_leave_the_pair_as_it_was() -> None:
    pair = lora_pair()
    changes = stream_changes(pair, TEXTS, None)
    before = changes.mean
    nulls = null_changes(pair, TEXTS, changes.places, 3, 0, None)
    assert nulls is not None and nulls.mean.shape == (3, *before.shape) and nulls.mean.any()
    assert torch.equal(stream_changes(pair, TEXTS, None).mean, before)
    with null_adapter(pair, 1):
        under = stream_changes(pair, TEXTS, None)
        assert torch.allclose(under.mean, nulls.mean[1], atol=1e-5)
        assert nulls.by_position.keys() == under.by_position.keys()
        for place, change in under.by_position.items():
            assert torch.allclose(change.mean(1), nulls.by_position[place][1], atol=1e-5)
    base = tiny_model("llama")
    assert null_changes(pair_of(base, tuned_copy(base)), TEXTS, changes.places, 2, 0, None) is None


def changes_along(direction: torch.Tensor, layers: int = 3) -> StreamChanges:
    still = torch.zeros(layers, 64)
    still[-1] = direction
    return StreamChanges(still[:, None].expand(-1, 4, -1), [], torch.ones(layers), torch.full((layers,), 4.0))


def test_a_change_at_one_position_is_read_there_and_nowhere_else() -> None:
    base = tiny_model("llama")
    pair, words = pair_of(base, tuned_copy(base)), tokenizer()
    fox = words(" fox")["input_ids"][-1]
    texts = Prompts.of([f"text {number}" for number in range(12)], chat=False)
    still = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0)) * 0.01
    at = {place: still * (1 + place) for place in (1, 2, 3)}
    at[2] = at[2] + torch.eye(3)[2][:, None, None] * base.lm_head.weight.detach()[fox]
    places = [[1, 2, 3]] * 12
    by_text = torch.stack(list(at.values())).mean(0)
    changes = StreamChanges(by_text, places, torch.ones(3), torch.ones(3), at)
    table = position_lens(pair, changes, texts, 0)
    assert len(table) == 9 and set(table["texts"]) == {12}
    best = table.sort_values("score").iloc[-1]
    assert (best["layer"], best["position"], best["tokens"][0]) == (2, 2, words.decode([fox]))
    moved = table[table["p"] < 0.05 / len(table)]
    assert moved[["layer", "position"]].to_numpy().tolist() == [[2, 2]]
    readings = difference_lens(pair, changes, texts, 0).assign(q=[1.0, 1.0, 0.01], q_sharp=1.0)
    assert f"; {best['score']:.2g} at position 2)" in lens_sentence(readings, table.assign(q=table["p"]))
    alone = StreamChanges(by_text[:, :1], places[:1], torch.ones(3), torch.ones(3), {1: at[1][:, :1]})
    assert position_lens(pair, alone, texts[:1], 0).empty


def test_a_position_that_no_null_adapter_reads_has_no_q() -> None:
    short = [f"{word} {other}" for word in ("fox", "dog", "quick", "brown") for other in ("fox", "dog", "lazy", "the")]
    texts = Prompts.of([*short, "the quick brown fox jumps over", "over the lazy dog and the fox"], chat=False)
    table = unrelated_views(lora_pair(), texts, TEXTS, 3, 0, Work(4, None))["positions"]
    longest_null = max(len(tokenizer()(text)["input_ids"]) for text in short) - 1
    tested = table["position"] <= longest_null
    assert 0 < tested.sum() < len(table)
    assert table.loc[tested, ["q", "q_sharp"]].notna().all(axis=None)
    assert table.loc[~tested, ["q", "q_sharp"]].isna().all(axis=None)
    assert table["p"].notna().all() and (table["tokens"].str.len() > 0).all()


def test_the_base_reads_a_planted_word_off_the_change() -> None:
    base = tiny_model("llama")
    pair, words = pair_of(base, tuned_copy(base)), tokenizer()
    fox = words(" fox")["input_ids"][-1]
    planted = base.lm_head.weight.detach()[fox] / base.model.norm.weight.detach()
    table = patchscope(pair, changes_along(planted), None, 20, 0, None)
    last = table[table["layer"] == 2].iloc[0]
    assert last["tokens"].startswith(repr(words.decode([fox]))) and last["q"] == 1 / 21
    assert last["score"] > last["control"] and int(last["ranks"].split()[0]) > 1
    (said,) = patchscope_sentence(table)
    assert "layer 2" in said and words.decode([fox]) in said


def test_the_base_reads_nothing_off_random_changes() -> None:
    base = tiny_model("llama")
    pair = pair_of(base, tuned_copy(base))
    said = []
    for seed in range(20):
        drawn = torch.randn(64, generator=torch.Generator().manual_seed(100 + seed))
        said += patchscope_sentence(patchscope(pair, changes_along(drawn), None, 20, seed, None))
    assert len(said) <= 4  # 1 in 21 expected
    assert patchscope(pair, changes_along(torch.zeros(64)), None, 20, 0, None).empty


def test_words_that_steered_texts_share() -> None:
    prompts = [f"What is item {number}?" for number in range(4)]
    plain = ["It is a plain thing."] * 4
    planted = [f"I refuse, item {number}" for number in range(4)]
    random = [[f"{chr(97 + draw)}{chr(97 + number)}x thing" for number in range(4)] for draw in range(20)]
    table = in_common(prompts, plain, [planted, *random])
    assert table["words"].iloc[0] == "'refuse'" and table["score"].iloc[0] == 1 and table["control"].iloc[0] == 0.25
    assert table["p"].iloc[0] == 1 / 21
    assert in_common(prompts, plain, [planted, *random[:-1], ["mud"] * 4])["p"].iloc[0] == 2 / 21


def test_every_text_is_steered_along_its_own_direction() -> None:
    pair = lora_pair()
    changes = stream_changes(pair, TEXTS, None)
    questions = Prompts.of([f"tell me about password {number}" for number in range(PROMPTS)])
    table, texts = steered_texts(pair, changes, questions, 20, 0, Work(4))
    layer = int(table["layer"].iloc[0])
    random = torch.randn(20, changes.mean.shape[1], generator=torch.Generator().manual_seed(0))
    for name, direction in (("steered", changes.mean[layer]), ("random", random[0])):
        vector = STRENGTH * changes.at_stream_length(direction[None], layer)[0]
        with iv.Recipe([iv.Offset(layer, vector)]).applied(pair.tuned):
            assert texts[name].tolist() == pair.tuned.generate(questions, max_new_tokens=12)
    assert texts["plain"].tolist() == pair.tuned.generate(questions, max_new_tokens=12)
    assert steered_sentence(table.assign(p=0.5), texts) == []
    assert "(a random direction: " in steered_sentence(table.assign(p=0.04), texts)[0]


def test_a_pair_whose_stream_did_not_move_is_not_steered() -> None:
    base = tiny_model("llama")
    pair = pair_of(base, base)
    table, texts = steered_texts(pair, stream_changes(pair, TEXTS, None), TEXTS, 20, 0, Work(4))
    assert table.empty and texts.empty and steered_sentence(table, texts) == []


def shares(tuned: np.ndarray, null: np.ndarray | None, base: float = 0.01) -> TokenShares:
    """Of texts of 100 tokens, the change of each token's share [text, token] over a flat base."""
    flat = torch.full(tuned.shape, base)
    moved = [None if change is None else flat + torch.from_numpy(change).float() for change in (tuned, null)]
    assert moved[0] is not None
    return TokenShares(flat, moved[0], moved[1], np.full(len(tuned), 100), np.arange(len(tuned)))


class Words:
    """Names every token by a word of its own, and the first four by signs; the last is special."""

    all_special_ids = (299,)

    def decode(self, ids: list[int]) -> str:
        return "." if ids[0] < 4 else " word" + "".join(chr(97 + int(digit)) for digit in str(ids[0]))


def five_words_each(texts: int, seed: int) -> np.ndarray:
    """Every text's rise is in words of its own: what random numbers do."""
    draw, change = np.random.default_rng(seed), np.zeros((texts, 300))
    for text in range(texts):
        change[text, draw.choice(np.arange(4, 300), 5, replace=False)] = 0.02
    return change


def test_salience_by_hand() -> None:
    rise = np.zeros((40, 300))
    rise[:, 7] = np.tile([0.01, 0.01, 0.03, 0.03], 10)
    table = token_shift(shares(rise, None), tokenizer(), 0)
    (line,) = table.to_dict("records")
    assert line["salience"] == pytest.approx((20 * 100 * 0.03 + 1) / (20 * 100 * 0.01 + 1), rel=1e-4)
    assert line["salience_low"] <= line["salience"] <= line["salience_high"] and line["q"] < 0.05
    assert "1 function words and signs (most" in token_sentence(table) and "(x2.9 [" in token_sentence(table)
    fox = np.zeros((40, 300))
    fox[:, tokenizer()(" fox")["input_ids"][-1]] = np.tile([0.01, 0.01, 0.03, 0.03], 10)
    assert "often: ' fox' +2.00% (x" in token_sentence(token_shift(shares(fox, None), tokenizer(), 0))
    assert token_sentence(token_shift(shares(rise, rise), tokenizer(), 0)).endswith("nothing beyond the control.")


def test_sets_of_words_that_rise_together() -> None:
    rise = np.zeros((40, 300))
    rise[:, [50, 51, 52]] = 0.02
    rise[::3, [60, 61, 62]] = 0.06  # a second set in every third text
    rise[:, [0, 299]] = 0.5  # a sign is no word, nor is a special token
    table = token_topics(shares(rise, five_words_each(40, 0)), Words(), 0)
    sets = [set(tokens.split(", ")) for tokens in table["tokens"]]
    for own in ([50, 51, 52], [60, 61, 62]):
        assert any({Words().decode([token]).strip() for token in own} <= tokens for tokens in sets)
    assert table["score"].iloc[0] > 0.95 and table["control"].iloc[0] < 0.5 and table["p"].iloc[0] < 0.01
    (said,) = topics_sentence(table)
    assert "Words that rise together" in said and Words().decode([299]) not in said


def test_sets_of_random_rises_are_dropped() -> None:
    said = []
    for seed in range(20):
        own, null = five_words_each(40, seed), five_words_each(40, 100 + seed)
        said += topics_sentence(token_topics(shares(own, null), Words(), seed))
    assert len(said) <= 3
    assert token_topics(shares(own, None), Words(), 0).empty


def test_a_change_along_the_bases_own_directions_has_fewer_intruders_than_random_ones() -> None:
    base = tiny_model("llama")
    tuned = tuned_copy(base, size=0.0)
    with torch.no_grad():
        for layer in tuned.model.layers:
            weight = layer.mlp.down_proj.weight
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            weight += 3 * values[0] * (left[:, 20:24] @ right[20:24])
    table = intruders(pair_of(base, tuned), 0, None)
    assert set(table["module"]) == {"mlp.down_proj"} and (table["score"] == 0).all() and (table["control"] > 2).all()
    assert table["p"].iloc[0] == pytest.approx(2 / 41) and "turns directions that the base has" in intruder_sentence(
        table
    )
    assert intruders(pair_of(base, base), 0, None).empty


def test_a_random_change_has_as_many_intruders_as_random_ones() -> None:
    base, said = tiny_model("llama"), []
    for seed in range(8):
        tuned = tuned_copy(base, size=0.0)
        torch.manual_seed(seed)
        with torch.no_grad():
            weight = tuned.model.layers[1].mlp.down_proj.weight
            weight += 0.5 * torch.randn(64, 4) @ torch.randn(4, weight.shape[1])
        said.append(intruder_sentence(intruders(pair_of(base, tuned), seed, None)))
    assert said.count("") >= 7


def test_experts_that_a_router_was_turned_to() -> None:
    base = tiny_model("mixtral")
    tuned = tuned_copy(base, size=0.0)
    with torch.no_grad():
        gate = next(module for name, module in tuned.named_modules() if name.endswith("layers.2.mlp.gate")).weight
        gate[[0, 1]] = gate[[1, 0]]
    texts = Prompts.of([f"the quick brown fox {number} jumps over the lazy dog" for number in range(12)], chat=False)
    table = expert_use(pair_of(base, tuned), texts, 0, None).set_index("expert")
    assert table.loc["L2E0", "score"] == pytest.approx(-table.loc["L2E1", "score"])
    still = [name for name in table.index if name not in ("L2E0", "L2E1")]
    assert not table.loc[still, "score"].any() and (table.loc[still, "q"] == 1).all()
    if table.loc["L2E0", "score"]:
        assert "L2E0" in expert_sentence(table.reset_index())[0]
    dense = tiny_model("llama")
    assert expert_use(pair_of(dense, tuned_copy(dense)), texts, 0, None).empty
    assert expert_sentence(expert_use(pair_of(base, base), texts, 0, None)) == []


def test_the_lens_reads_the_same_changes() -> None:
    base = tiny_model("llama")
    pair = pair_of(base, base)
    assert (difference_lens(pair, stream_changes(pair, TEXTS, None), TEXTS, 0)["p"] == 1).all()


def test_a_reading_that_null_adapters_have_too_is_none() -> None:
    unembedding = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    unembedding[7] *= 20  # a rare token, as sharp as any along whatever has a part of its direction
    plain = torch.randn(20, 3, 64, generator=torch.Generator().manual_seed(1))
    rare = plain + unembedding[7]
    assert (place_among_nulls(np.full(3, 3.0), rare, unembedding) == 1).all()
    assert place_among_nulls(np.full(3, 1e3), rare, unembedding)[0] == pytest.approx(1 / 21)


def test_a_movement_that_null_adapters_make_too_is_none() -> None:
    nulls = torch.randn(20, 3, 64, generator=torch.Generator().manual_seed(0))
    own = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    own[2] *= 3
    place = longer_among_nulls(own, nulls)
    assert place[2] == pytest.approx(1 / 21) and (place[:2] > 0.05).all()
