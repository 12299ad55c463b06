"""Dials, directions and clouds: numbers with known answers, planted attributes, nulls and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

import probes
from probes.attributes.dial import dial_numbers
from probes.attributes.dial_calibration import Curve, curve_of, inverted
from probes.attributes.dial_texts import Turned
from probes.attributes.directions import disentangled, disentanglement
from probes.attributes.intersection import meeting_point
from probes.attributes.perturbed_cache import Push, PushedDecoding
from probes.attributes.pplm import bag_ids
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.behaviour.generation import Decoding, Reply, end_ids, generate_replies
from workbench.behaviour.linguistic import ATTRIBUTES, profile
from workbench.behaviour.scorers import behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

TEXTS = Prompts.of([f"{'the fox! the dog! ' * (1 + n % 3)}{'he saw it ' * (n % 2)}{n}" for n in range(16)])


def model() -> AdaptedModel:
    return AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")


def calls_of_pplm() -> Calls:
    given = {
        "bag": ["fox"], "sizes": [0.03], "steps": 2, "gamma": 1.0, "kl": 0.02, "fusion": 0.8, "max_new_tokens": 3,
        "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(12), **given}])


def calls_of_intensity_dial() -> Calls:
    given = {
        "attribute": "word_length", "layers": [1], "reach": 0.3, "dearest": 2.0, "samples": 3,
        "off_target": ["variety"], "controls": 11, "max_new_tokens": 3, "batch_size": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(12), **given}])


def calls_of_attribute_directions() -> Calls:
    given = {
        "attributes": ["length", "pronouns"], "layer": 1, "penalty": 2.0, "strength": 0.1, "controls": 11,
        "batch_size": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": TEXTS, **given}])


def calls_of_attribute_intersection() -> Calls:
    given = {
        "attributes": ["word_length", "length"], "layer": 1, "strength": 0.5, "samples": 4, "max_new_tokens": 8,
        "batch_size": 5, "seed": 3,
    }  # fmt: skip
    return Calls([{"subject": pair(), "prompts": rows(12), **given}])


def test_linguistic_attributes_are_counts() -> None:
    text = "Is it there? He saw 3 dogs, and the cat!"
    found = profile(text)
    assert found["questions"] == pytest.approx(0.1) and found["pronouns"] == pytest.approx(0.2)
    assert found["digits"] == pytest.approx(0.1) and found["articles"] == pytest.approx(0.1)
    assert found["conjunctions"] == pytest.approx(0.1) and found["punctuation"] == pytest.approx(0.3)
    assert behaviour("pronouns")(text) == found["pronouns"] and not behaviour("pronouns").share
    assert all(count("") == 0 for _, count in ATTRIBUTES.values())


def test_a_linear_responder_is_calibrated_and_a_step_is_not() -> None:
    steps = np.linspace(0, 1, 5)[:, None] * np.ones((5, 7))
    assert dial_numbers(steps) == pytest.approx((1.0, 0.0, 0.0, 1.0))
    step = np.array([0.0, 0, 0, 0, 1])[:, None] * np.ones((5, 7))
    assert dial_numbers(step)[0] == 1.0 and dial_numbers(step)[1] == pytest.approx((0.25 + 0.5 + 0.75) / 5)
    assert dial_numbers(np.ones((5, 7))) == pytest.approx((0.0, 0.0, 0.0, 0.0))
    strengths = np.linspace(-1, 1, 5)
    cube = strengths**3
    assert inverted(strengths, cube)[1] < -0.5 < 0.5 < inverted(strengths, cube)[3], "flat places are passed quickly"
    assert inverted(strengths, -cube)[0] == 1.0, "a falling curve is turned round"


class Responder:
    """Writes as many words as a function of the strength says, the dearer the farther from 0."""

    def __init__(self, words: Callable[[float], float], price: float = 0.0) -> None:
        self.words, self.price = words, price

    def replies(self, _rows: Prompts, texts: Sequence[Turned]) -> list[Reply]:
        return [Reply((), " ".join(["word"] * round(self.words(text.strength))), ended=True) for text in texts]

    def perplexities(self, _rows: Prompts, replies: Sequence[Sequence[Reply]]) -> list[float]:
        return [2.0 + self.price * abs(place - len(replies) // 2) for place in range(len(replies))]

    def curve(self, reach: float = 1.0) -> Curve:
        rows = Prompts.of(["a", "b"])
        plain = self.replies(rows, [Turned(row, 0, 0.0) for row in range(2)])
        return curve_of(self, rows, behaviour("length"), plain, reach=reach, dearest=3.0)


@pytest.mark.parametrize(
    ("words", "price", "settings"),
    [
        (lambda strength: 40 + 20 * strength, 0.0, [-1, -0.5, 0, 0.5, 1]),
        (lambda strength: 40 - 20 * strength, 0.0, [1, 0.5, 0, -0.5, -1]),
        (lambda strength: 40 + 20 * min(strength, 0), 0.0, [-1, -0.75, -0.5, -0.25, 0]),
        (lambda strength: 40 + 20 * max(strength, 0), 0.0, [0, 0.25, 0.5, 0.75, 1]),
        (lambda strength: 40 - 20 * abs(strength - 0.25), 0.0, [-1, -0.6875, -0.375, -0.0625, 0.25]),
        (lambda strength: 40 + 20 * strength, 1.5, [-0.5, -0.25, 0, 0.25, 0.5]),
        (lambda _strength: 40, 0.0, [0, 0, 0, 0, 0]),
    ],
    ids=["both ways", "turned round", "less alone", "more alone", "peaked", "dear", "none"],
)
def test_a_dial_takes_the_range_that_there_is(
    words: Callable[[float], float], price: float, settings: list[float]
) -> None:
    curve = Responder(words, price).curve()
    assert curve.settings() == pytest.approx(settings, abs=1e-6)
    made = [words(strength) for strength in curve.settings()]
    assert np.diff(made) == pytest.approx(curve.range / 4, abs=1e-6), "equal steps of the attribute"


def test_a_dial_turns_what_was_planted_and_random_directions_do_not() -> None:
    found = probes.intensity_dial(
        model(), [f"the {one}" for one in "abcdefghijkl"], "word_length", layers=[0, 1], reach=2.0, samples=6,
        max_new_tokens=6,
    )  # fmt: skip
    assert list(found.sides["side"]) == ["less", "more"] and found.layer in (0, 1)
    assert found.plain_cut == 1 and "100% of the plain texts end at the limit" in found.summary()
    assert len(found.table) == 5 and len(found.numbers) == 4 and found.table["perplexity"].gt(1).all()
    assert found.numbers["score"][0] > found.numbers["control"][0]
    assert found.recipe(0.5).interventions[0].strength == pytest.approx(found.settings[2])
    assert found.figure().data and "range" in found.summary()
    with pytest.raises(UserError, match="the same in all samples"):
        probes.intensity_dial(model(), ["the a", "the b", "the c", "the d"], "contains:zebra", max_new_tokens=2)
    with pytest.raises(UserError, match="from 0 to 1"):
        found.recipe(1.5)


def test_orthogonality_is_reached_and_planted_directions_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 20, generator=generator)
    high = torch.stack([states[:, 0] > 0, states[:, 0] + states[:, 1] > 0], dim=1)
    plain, apart = disentangled(states, high, 0.0), disentangled(states, high, 5.0)
    assert abs(float(plain[0] @ plain[1])) > 0.5 > 0.15 > abs(float(apart[0] @ apart[1]))
    alone = disentangled(states, torch.stack([states[:, 0] > 0, states[:, 1] > 0], dim=1), 1.0)
    assert alone[0, 0] > 0.95 and alone[1, 1] > 0.95


def test_leakage_is_a_matrix_with_its_control() -> None:
    found = probes.attribute_directions(model(), TEXTS, ["length", "pronouns"], layer=1)
    assert found.leakage().shape == (2, 2) and len(found.gram) == 1 and found.figure().data
    own = found.table[found.table["steered"] == found.table["measured"]]
    assert (own["score"] > own["control"]).all() and (found.readout["accuracy"] >= 0.5).all()
    metrics = found.metrics
    assert (metrics["range"] > metrics["range_control"]).all() and metrics["disentanglement"].between(0, 1).all()
    assert len(found.recipe(length=0.2, pronouns=-0.1).interventions) == 2
    with pytest.raises(UserError, match="does not part"):
        probes.attribute_directions(model(), TEXTS, ["length", "contains:zebra"], layer=1)


def test_range_and_disentanglement_by_hand() -> None:
    spans = np.array([[3.0, 4.0], [3.0, -4.0]])
    found = disentanglement(spans, 0, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert found.tolist() == [[3.0, 1.0], [3.0, 9 / 25]]


def test_clouds_meet_where_they_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(12, 2, generator=generator) * 0.1
    first = torch.cat([both, torch.tensor([10.0, 0.0]) + torch.randn(60, 2, generator=generator)])
    second = torch.cat([both, torch.tensor([0.0, 10.0]) + torch.randn(20, 2, generator=generator)])
    assert meeting_point([first, second]).norm() < 0.5 < torch.stack([first.mean(0), second.mean(0)]).mean(0).norm()


def test_several_attributes_are_counted_together() -> None:
    found = probes.attribute_intersection(
        model(), [f"the {one}" for one in "abcdefgh"], ["word_length", "length"], layer=1, samples=4, max_new_tokens=8
    )
    assert set(found.table["how"]) == {"intersection", "centres", "sum", "plain"} and found.figure().data
    both = found.table[found.table["number"] == 2].set_index("how")["score"]
    single = found.table[(found.table["number"] == 1) & (found.table["how"] == "plain")]["score"]
    assert both["plain"] <= single.min() and found.recipe(["word_length", "length"]).interventions
    assert len(found.interference) == 4


def test_no_push_is_ordinary_decoding_and_a_push_raises_the_bag() -> None:
    tiny = model()
    ids = tiny.encode(["the fox"]).input_ids[0].tolist()
    plain = generate_replies(Subject("plain", tiny), Prompts.of(["the fox"]), Decoding(8), Work())[0][0].ids
    bag = bag_ids(tiny, ["q", "z"])
    for push in (Push(steps=0), Push(size=0.0), Push(fusion=0.0)):
        assert tuple(PushedDecoding(tiny, bag, push).text(ids, 8, end_ids(tiny))) == plain
    small = PushedDecoding(tiny, bag, Push(size=0.005, steps=4, gamma=1.0, kl=0.0))
    small.text(ids, 6, end_ids(tiny))
    assert all(np.all(np.diff(one) > 0) for one in small.mass), "each small step raises the bag"
    rows = [ids, ids[:1], [*ids, 40, 41, 42]]
    together = PushedDecoding(tiny, bag, Push(size=0.05, steps=2, gamma=1.0))
    apart = [PushedDecoding(tiny, bag, Push(size=0.05, steps=2, gamma=1.0)).text(row, 6, set()) for row in rows]
    assert together.texts(rows, 6, set()) == apart, "each row has its own gradient, padded or not"
    held = PushedDecoding(tiny, bag, Push(size=0.005, steps=4, gamma=1.0, kl=1e4))
    held.text(ids, 6, end_ids(tiny))
    assert np.mean([one[-1] / one[0] for one in held.mass]) < np.mean([one[-1] / one[0] for one in small.mass])


def test_pplm_against_random_words() -> None:
    found = probes.pplm(
        model(), ["the fox", "a dog", "the cat", "big"], ["q", "z"], sizes=[0.5], gamma=1.0, max_new_tokens=6
    )
    lines = found.table.set_index("size")
    assert lines.loc[0.5, "mass_after"] > lines.loc[0.5, "mass_before"] and lines.loc[0.0, "q"] == 1
    assert lines.loc[0.5, "score"] >= lines.loc[0.5, "control"] and found.figure().data
    with pytest.raises(UserError, match="a bag holds words of one token"):
        probes.pplm(model(), ["the"], ["zebra xylophone"])
