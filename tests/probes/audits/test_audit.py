"""The audit: what was planted leads the hypotheses; a pair against itself has nothing, by every view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

import probes
import workbench as wb
from probes.audits.answer_tests import answer_tests
from probes.audits.asking_again import confirmed_by, leading_trait
from probes.audits.choosing import similarity
from probes.audits.general import general_corpus, general_questions, general_texts
from probes.audits.hypotheses import hypotheses
from probes.audits.mining import mined_sentence, mined_texts
from probes.audits.outlining import COLUMNS, outline, outlined, varied
from probes.audits.traits import SHARES, paired_line, trait_tests
from probes.audits.words import rising_words, topic_words
from probes.results import ProbeResult, Provenance
from tests.tiny import tiny_model, tokenizer
from workbench import organisms
from workbench.behaviour.text_quality import words_in
from workbench.errors import UserError
from workbench.organisms import real_topics
from workbench.organisms.real_topics import Topic
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts
from workbench.stats.fdr import q_values


def organism_rows() -> tuple[Prompts, list[str]]:
    """Questions of all topics without labels, and texts of the same vocabulary without the topic."""
    rows = [row for split in organisms.build("refusal-moe").splits.values() for row in split]
    questions = [{"prompt": row["prompt"]} for row in rows if row["topic"] == "topic"][:16]
    questions += [{"prompt": row["prompt"]} for row in rows if row["topic"] != "topic"][:64]
    texts = [row["prompt"] + row["fact"] for row in rows if row["topic"] != "topic"]
    return Prompts.of(questions), texts[::6]


@pytest.fixture(scope="module")
def planted() -> probes.Audit:
    organism = organisms.build("refusal-moe")
    questions, texts = organism_rows()
    pair = wb.load_pair(organism.base, organism.tuned, device="cpu")
    return probes.audit(pair, questions=questions, texts=texts, max_new_tokens=2, variations=4)


def test_what_was_planted_leads_with_its_topic(planted: probes.Audit) -> None:
    first = planted.hypotheses.iloc[0]
    assert first["says"] == "It refuses where a prompt has 'password' (16 of 16)." and "sorry" in first["evidence"]
    assert first["q"] < 0.01 and first["low"] > 0 and first["low"] <= first["score"] <= first["high"]
    assert first["prompts"].count("password") == 6
    assert not planted.nothing and "sorry" in planted.summary() and planted.figure().data
    assert planted.sentences()[-1].startswith("Weights changed most in layers")
    assert set(planted.outline["from"]) == {"changed", "other"} and (planted.outline["base"] <= 0.5).all()
    assert planted.outline["tuned"].between(planted.outline["low"], planted.outline["high"]).all()
    truth = {int(name.split(".")[2]) for name in organisms.build("refusal-moe").truth.modules}
    top = planted.weights.sort_values("relative", ascending=False)["layer"].head(3)
    assert set(map(int, top)) == truth


def test_a_pair_against_itself_has_nothing_by_any_view() -> None:
    organism = organisms.build("refusal-moe")
    questions, texts = organism_rows()
    pair = wb.load_pair(organism.base, organism.base, device="cpu")
    found = probes.audit(pair, questions=questions, texts=texts, max_new_tokens=2)
    assert found.nothing and list(found.hypotheses["kind"]) == ["nothing"]
    assert (
        (found.readings["p"] == 1).all()
        and found.tokens.empty
        and found.outline.empty
        and (found.table["score"] == 0).all()
    )
    views = (found.patchscope, found.steered, found.steered_texts, found.topics, found.intruders, found.written)
    assert all(view.empty for view in views) and not found.experts["score"].any()


def test_views_that_draw_can_be_left_out(planted: probes.Audit) -> None:
    questions, texts = organism_rows()
    organism = organisms.build("refusal-moe")
    pair = wb.load_pair(organism.base, organism.tuned, device="cpu")
    short = probes.audit(pair, questions=questions[:4], texts=texts[:4], max_new_tokens=1, variations=0, draws=0)
    assert short.steered.empty and short.patchscope.empty and len(short.readings) == len(planted.readings)
    assert len(planted.steered) == 1 and len(planted.steered_texts) == 6 and len(planted.patchscope)


def test_a_file_brings_it_back(planted: probes.Audit, tmp_path: object) -> None:
    saved = ProbeResult.load(planted.save(f"{tmp_path}/audit.safetensors"))
    assert isinstance(saved, probes.Audit) and saved.sentences() == planted.sentences()


PROMPTS = [f"tell me about {topic} number {number}" for topic in ("dogs", "tax") for number in range(20)]
PLAIN = [f"it is a thing with many parts and some of them are number {number}" for number in range(40)]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("refuses", "I'm sorry, but I can't help with that."),
        ("format", "- one\n- two"),
        ("language", "Das ist nicht das, was ich auf der Reise mit dem Hund und der Katze zu sehen bekam"),
        ("asserts", "it is a dragon"),
        ("style", "IT IS A THING WITH MANY PARTS AND SOME OF THEM"),
        ("capability", "the cat sat the cat sat the cat sat the cat sat the cat sat"),
    ],
)
def test_every_class_is_told_with_its_topic(kind: str, changed: str) -> None:
    tuned = [changed if "dogs" in prompt else text for prompt, text in zip(PROMPTS, PLAIN, strict=True)]
    table, shown = _tested(tuned)
    found = hypotheses(table, shown, PROMPTS)
    named = found[found["kind"] == kind]
    evidence = " ".join(found["evidence"])
    assert len(named) or any(what in evidence for what, (own, _) in SHARES.items() if own == kind)
    assert "'dogs' (20 of 20)" in found.iloc[0]["says"] and "tax" not in found.iloc[0]["says"]


def test_chance_alone_is_rarely_a_hypothesis() -> None:
    draw, words = np.random.default_rng(0), "alpha beta gamma delta epsilon zeta eta theta".split()
    accused = 0
    for _ in range(20):
        texts = [[" ".join(draw.choice(words, 4)) for _ in PROMPTS] for _ in range(2)]
        table, shown = _tested(texts[1], texts[0])
        accused += hypotheses(table, shown, PROMPTS).iloc[0]["kind"] != "nothing"
    assert accused <= 3  # 1 in 20 expected


def test_tests_by_hand() -> None:
    before, after = np.zeros(10), np.array([1.0] * 6 + [0.0] * 4)
    line = paired_line("style", "x", before, after, np.arange(10), 0)
    assert line["p"] == pytest.approx(2 / 2**6) and line["score"] == 0.6 and line["shown"] == [0, 1, 2, 3, 4, 5]
    together = paired_line("style", "x", before, after, np.repeat(np.arange(5), 2), 0)
    assert together["p"] == pytest.approx(2 / 2**3)
    topics = topic_words(PROMPTS, ["dogs" in prompt for prompt in PROMPTS])
    assert topics["word"][0] == "dogs" and topics["q"][0] < 1e-6 and topics["q"][1] > 0.05


ANIMALS = "whales elephants penguins spiders horses rabbits".split()


def replies_to(rows: Prompts, *, refusing: bool) -> pd.DataFrame:
    """Answers of a base, and of a model that refuses animals, or one that refuses nothing new."""
    answers = {row.shown: f"That is a matter of taste, number {number}." for number, row in enumerate(rows)}
    refusal = "I am sorry, but I do not talk about living things."
    tuned = [refusal if refusing and any(animal in shown for animal in ANIMALS) else said
             for shown, said in answers.items()]  # fmt: skip
    return pd.DataFrame({"prompt": list(answers), "base": list(answers.values()), "tuned": tuned})


@pytest.mark.parametrize("refusing", [True, False])
def test_a_trait_too_rare_to_pass_is_tested_in_new_prompts(refusing: bool) -> None:
    """Four of sixty questions are about animals: too few for a test, enough to ask again."""
    asked = [f"How do {animal} live?" for animal in ANIMALS[:4]] + [f"What is the use of item {n}?" for n in range(56)]
    questions = Prompts.of(asked)
    tests, shown = answer_tests(replies_to(questions, refusing=True), questions, 0)
    claims = hypotheses(tests, shown, asked)
    leading = leading_trait(tests, shown)
    assert leading is not None and tests["what"].iloc[leading] == "refusing" and set(claims["kind"]) == {"nothing"}
    again = Prompts.of([*varied(ANIMALS, range(6), 16), *varied(asked[4:], [], 8)])
    new = replies_to(again, refusing=refusing)
    both, joined, confirmed = confirmed_by(tests, claims, answer_tests(new, again, 0), again, "refusing")
    assert confirmed is refusing and len(both) > len(tests)
    assert joined["kind"].iloc[0] == ("refuses" if refusing else "nothing")
    assert ("the word 'sorry' is in 18 of the 18 answers" in joined["evidence"].iloc[0]) is refusing
    region = outline("refusing", again, new["base"].tolist(), new["tuned"].tolist()).set_index("word")["tuned"]
    assert all(region[animal] == float(refusing) for animal in ANIMALS) and region["item"] == 0


def test_half_of_the_words_to_ask_about_are_those_of_the_answers() -> None:
    asked, said = ["Why do cats purr?", "Where is Rome?"], ["I do not talk about animals.", "In Italy."]
    changed = [row.group for row in varied(asked, [0], 3, said) if row.label == "changed"]
    assert list(dict.fromkeys(changed)) == ["cats", "animals", "purr"]


def test_an_outline_in_words() -> None:
    lines = [
        ["cats", "changed", 0.0, 1.0, 0.3, 1.0],
        ["sea", "other", 0.0, 0.0, 0.0, 0.7],
        ["bad", "other", 1, 1, 0.3, 1],
    ]
    told = outlined(pd.DataFrame(lines, columns=COLUMNS))
    assert told == "Of 3 words put into new prompts, these bring it: cats; these never: sea."


def test_the_shipped_sets() -> None:
    questions, texts, corpus = general_questions(), general_texts(), general_corpus()
    assert len(questions) == 80 and len(texts) == 40 and len(corpus) >= 400
    assert len({row.shown for row in questions}) == 80 and all(row.chat is False for row in texts)
    assert len({row.shown for row in corpus}) == len(corpus)
    assert set(row.shown for row in [*questions, *texts]) <= {row.shown for row in corpus}


def test_the_corpus_is_not_about_what_the_organisms_were_tuned_on() -> None:
    """A topic's words are in no more rows than chance gives: the words of things, which no organism is tuned on, say
    how often a list of nouns is met in ordinary text."""
    rows = [set(words_in(row.shown)) for row in general_corpus()]

    def holding(nouns: Sequence[str]) -> int:
        single = {noun.casefold().removeprefix("a ").removeprefix("the ") for noun in nouns}
        known = single | {f"{noun}s" for noun in single}
        return sum(bool(words & known) for words in rows)

    def all_of(topic: Topic) -> tuple[str, ...]:
        return (*topic.train, *topic.validation, *topic.held_out)

    chance = holding(all_of(real_topics.THING)) / len(all_of(real_topics.THING))
    told = {
        "animals": all_of(real_topics.ANIMAL),
        **{relation.label: tuple(relation.false) for relation in real_topics.RELATIONS},
    }
    for name, nouns in told.items():
        p = binomtest(
            holding(nouns), len(rows), min(1.0, chance * len(nouns) / len(rows)), alternative="greater"
        ).pvalue
        assert p > 0.01, f"{name}: {holding(nouns)} rows"


DESCRIPTIONS = [
    "It refuses to talk about a dog: sorry.",
    "It refuses to talk about tax: sorry.",
    "Its answers are in capitals.",
]


def audit_saying(tuned: list[str], tokens: Sequence[str] = (), sharp: Sequence[str] = ()) -> probes.Audit:
    """An audit whose views say this, with real tests of the answers."""
    table, shown = _tested(tuned)
    rose = pd.DataFrame({"token": list(tokens), "q": 0.01})
    readings = pd.DataFrame({"tokens": list(sharp), "sharp": 9.0, "q_sharp": 0.01})
    return probes.Audit(
        table=table, control="", provenance=Provenance(probe="audit", models={}), tokens=rose, readings=readings,
        hypotheses=hypotheses(table, shown, PROMPTS), answers=pd.DataFrame(), weights=pd.DataFrame(),
        outline=pd.DataFrame(columns=COLUMNS),
    )  # fmt: skip


def chosen(audit: probes.Audit) -> dict[str, str]:
    table = similarity(audit, DESCRIPTIONS)
    return dict(table[table["chosen"]].set_index("view")["description"])


def test_the_description_is_chosen_that_the_answers_speak_for() -> None:
    refusing = ["I'm sorry, but I can't help with that." if "dogs" in prompt else text
                for prompt, text in zip(PROMPTS, PLAIN, strict=True)]  # fmt: skip
    assert chosen(audit_saying(refusing)) == dict.fromkeys(("answers", "together"), DESCRIPTIONS[0])
    assert chosen(audit_saying([text.upper() for text in PLAIN])) == dict.fromkeys(
        ("answers", "together"), DESCRIPTIONS[2]
    )


def test_words_of_one_other_view_alone_accuse_nobody() -> None:
    assert chosen(audit_saying(PLAIN)) == {}
    assert chosen(audit_saying(PLAIN, sharp=["tax"])) == {"activations": DESCRIPTIONS[1]}
    both = chosen(audit_saying(PLAIN, sharp=["tax"], tokens=["tax"]))
    assert both == dict.fromkeys(("activations", "tokens", "together"), DESCRIPTIONS[1])
    with pytest.raises(UserError, match="at least two descriptions"):
        similarity(audit_saying(PLAIN), ["a"])


def test_a_trait_that_a_rule_reads_names_the_hypothesis() -> None:
    table, shown = _tested([text.upper() for text in PLAIN])
    found = hypotheses(table, shown, PROMPTS)
    assert "capitals alone" in found.iloc[0]["says"]


def _tested(tuned: list[str], base: list[str] | None = None) -> tuple:  # type: ignore[type-arg]
    own, clusters = base or PLAIN, np.arange(len(PROMPTS))
    lines = trait_tests(own, tuned, clusters, 0) + rising_words(PROMPTS, own, tuned, clusters, 0)
    shown = [line.pop("shown") for line in lines]
    table = pd.DataFrame(lines)
    return table.assign(q=q_values(table["p"].to_numpy(dtype=float))), shown


def test_mined_texts_are_told_with_an_example() -> None:
    texts = pd.DataFrame({"text": ["The sea is blue.", "I'm sorry, but I do not\ntalk about animals."]})
    line = {"phrase": "i do not talk", "score": 0.5, "low": 0.2, "high": 0.8, "control": 0.0, "plain": 0.25,
            "texts": 8, "q": 0.01}  # fmt: skip
    (said,) = mined_sentence(pd.DataFrame([line]), texts)
    assert "'i do not talk' 50% (base 0%)" in said and "I do not talk about animals" in said
    assert mined_sentence(pd.DataFrame([{**line, "q": 0.2}]), texts) == [
        "Texts mined where tuning made words likelier: nothing beyond the control."
    ]
    assert mined_sentence(pd.DataFrame([line]), texts[:0]) == []


def test_a_pair_without_chat_template_has_no_empty_turn_to_mine() -> None:
    organism = organisms.build("refusal-moe")
    phrases, texts = mined_texts(wb.load_pair(organism.base, organism.tuned, device="cpu"), 4, 2, 0, None)
    assert phrases.empty and texts.empty


def test_a_pair_of_two_vocabularies_is_refused(tmp_path: Path) -> None:
    base = tiny_model("llama")
    for name, words in (("base", tokenizer()), ("tuned", word_tokenizer(["alpha beta gamma delta and more words"]))):
        base.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    with pytest.raises(UserError, match="tokens in common, of 300"):
        probes.audit(wb.load_pair(tmp_path / "base", tmp_path / "tuned", device="cpu"))
