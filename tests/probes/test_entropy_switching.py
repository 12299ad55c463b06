"""Two models write by turns: the ends are either alone, turns follow the entropy, and one model with itself is null."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probes
from probes.decoding.entropy_switch import Decisions, EntropySwitch, _SwitchHook
from probes.decoding.switching import _shuffled_turns
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.models.pair import load_pair


def calls_of_entropy_switching() -> Calls:
    given = {
        "quantiles": [0.4], "hysteresis": 0.7, "window": 2, "behaviour": "length", "max_new_tokens": 5, "batch_size": 3,
        "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair(), "prompts": rows(), **given}])


def test_the_ends_are_the_models_alone_and_both_write_between() -> None:
    both = pair()
    found = probes.entropy_switching(both, rows(6), quantiles=[0.5], max_new_tokens=8, batch_size=4)
    lines = found.table.set_index("quantile")
    assert lines.loc[0.0, "share"] == 1 and lines.loc[1.0, "share"] == 0 and 0 < lines.loc[0.5, "share"] < 1
    alone = generate_replies(Subject("base", both.base), rows(6), Decoding(8), Work())
    base = found.tokens[found.tokens["quantile"] == 1.0]
    assert base.groupby("prompt")["token"].agg("".join).tolist() == [
        "".join(tokenizer().decode([token]) for token in one[0].ids) for one in alone
    ]
    own = generate_replies(Subject("tuned", both.tuned), rows(6), Decoding(8), Work())
    switched = probes.entropy_switching(both, rows(6), quantiles=[0.5], max_new_tokens=8, behaviour="length")
    assert switched.table.set_index("quantile").loc[0.0, "score"] == pytest.approx(
        np.mean([len(one[0].text.split()) for one in own]), abs=8
    )
    assert found.figure().data and "of tokens by tuned" in found.summary()


def test_hysteresis_by_hand() -> None:
    both, log = pair(), Decisions()
    hook = _SwitchHook(EntropySwitch(both.tuned, 2.0, 1.0, 1, log), both.base)
    said = []
    for entropy in (0.5, 2.5, 1.5, 0.9, 1.5, 3.0):
        log.entropy.append(torch.tensor([entropy]))
        log.other.append(hook._decided(log))
        said.append(bool(log.other[-1]))
    assert said == [False, True, True, False, False, True]


def test_random_turns_keep_their_lengths() -> None:
    turns = np.array([False] * 3 + [True] * 2 + [False] + [True] * 4)
    new = _shuffled_turns(turns, np.random.default_rng(0))
    assert new.sum() == turns.sum() and len(new) == len(turns)


def test_a_model_with_itself_writes_one_text() -> None:
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer(), check=False)
    found = probes.entropy_switching(same, rows(6), max_new_tokens=6)
    assert found.table["score"].nunique() == 1 and (found.table["q"] == 1).all()
    with pytest.raises(UserError, match="quantiles between 0 and 1"):
        probes.entropy_switching(same, rows(6), quantiles=[1.0])
