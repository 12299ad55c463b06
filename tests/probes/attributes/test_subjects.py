"""An offset at the subject moves the subject as the words do; everywhere it leaks more; unequal pairs are refused."""

from __future__ import annotations

import pytest

import probes
from tests.probes.provenance import Calls, pair
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts

PAIRS = [
    {"prompt": f"the a fox {x} the dog {x}", "contrast": f"the z fox {x} the dog {x}", "group": x}
    for x in "bcdefghijklm"
]


def calls_of_subject_offset() -> Calls:
    return Calls(
        [{"subject": pair(), "prompts": Prompts.of(PAIRS), "layer": 1, "strength": 0.5, "controls": 11, "seed": 3}]
    )


def test_the_subject_moves_as_words_move_it_and_everywhere_leaks_more() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")
    found = probes.subject_offset(model, PAIRS, layer=1)
    lines = found.table.set_index(["offset", "measured"])
    own = lines.loc[("subject", "subject")]
    assert own["score"] > 0.5 > abs(own["control"]) and own["words"] == pytest.approx(1.0, abs=0.4)
    assert lines.loc[("everywhere", "others"), "score"] > lines.loc[("subject", "others"), "score"] + 0.2
    assert found.recipe([5]).interventions and found.figure().data and "Offset at L1" in found.summary()
    with pytest.raises(UserError, match="of as many tokens"):
        probes.subject_offset(model, [{**one, "contrast": f"{one['contrast']} more"} for one in PAIRS])
    with pytest.raises(UserError, match="very end"):
        probes.subject_offset(model, [{"prompt": f"the {x} a", "contrast": f"the {x} z"} for x in "bcdef"])
