"""Recipes in one line: the same as by hand, to the bit; errors name the place and the closest name."""

from __future__ import annotations

import pytest
import torch

import interventions as iv
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

FORMAL = iv.Offset(1, torch.randn(64, generator=torch.Generator().manual_seed(0)))
VERBOSE = iv.Offset(0, torch.randn(64, generator=torch.Generator().manual_seed(1)), strength=2.0)
GATE = iv.Gate(0, torch.randn(64, generator=torch.Generator().manual_seed(2)), 0.1)
BOOK = {
    "formal": FORMAL,
    "verbose": VERBOSE,
    "refuse-animals": iv.Recipe([FORMAL, VERBOSE]),
    "dim": iv.LayerScale(0.5, 0.5),
    "animals": iv.Offset(0, GATE.direction, strength=0.0, when=GATE),
    "attic": FORMAL,
}


@pytest.mark.parametrize(
    ("text", "by_hand"),
    [
        ("formal", iv.Recipe([FORMAL])),
        (" -formal", iv.Recipe([FORMAL]) * -1),
        ("0.5*formal - 0.2*verbose", iv.Recipe([FORMAL]) * 0.5 + iv.Recipe([VERBOSE]) * -0.2),
        (".5 * formal-2.*verbose", iv.Recipe([FORMAL]) * 0.5 + iv.Recipe([VERBOSE]) * -2.0),
        ("1e-1*refuse-animals", iv.Recipe([FORMAL, VERBOSE]) * 0.1),
        ("formal + formal", iv.Recipe([FORMAL, FORMAL])),
        (
            "formal @last+generated + verbose",
            iv.Recipe([iv.Offset(1, FORMAL.vector, positions="last+generated"), VERBOSE]),
        ),
        ("formal @response", iv.Recipe([iv.Offset(1, FORMAL.vector, positions="last+generated")])),
        ('formal @"all - first"', iv.Recipe([iv.Offset(1, FORMAL.vector, positions="all - first")])),
        ("formal at L2", iv.Recipe([iv.Offset(2, FORMAL.vector)])),
        ("0.5*formal at L0-L1", iv.Recipe([iv.Offset(place, FORMAL.vector, strength=0.5) for place in (0, 1)])),
        ("ablate formal", iv.Recipe([iv.ConceptAblation(1, FORMAL.vector)])),
        (
            "0.5*ablate verbose at L2 @last",
            iv.Recipe([iv.ConceptAblation(2, VERBOSE.vector, strength=0.5, positions="last")]),
        ),
        ("formal when animals @last", iv.Recipe([iv.Offset(1, FORMAL.vector, positions="last", when=GATE)])),
        ("attic when animals - formal", iv.Recipe([iv.Offset(1, FORMAL.vector, when=GATE), FORMAL.scaled(-1)])),
        ("formal@prompt[0:2]", iv.Recipe([iv.Offset(1, FORMAL.vector, positions="prompt[0:2]")])),
    ],
)
def test_a_line_is_the_recipe_made_by_hand(text: str, by_hand: iv.Recipe) -> None:
    assert iv.recipe_from_text(text, BOOK) == by_hand


def test_a_line_computes_what_the_recipe_by_hand_does() -> None:
    model, ids = AdaptedModel(tiny_model("llama"), tokenizer()), token_batch(2, 8, seed=1)
    with torch.no_grad():
        plain = model.inner(ids).logits
        with iv.recipe_from_text('0.5*formal @"all - first"', BOOK).applied(model):
            steered = model.inner(ids).logits
        with iv.recipe_from_text("formal - formal", BOOK).applied(model):
            undone = model.inner(ids).logits
        with iv.recipe_from_text("0*formal", BOOK).applied(model):
            neutral = model.inner(ids).logits
    assert torch.equal(steered[:, 0], plain[:, 0]) and not torch.allclose(steered[:, 1:], plain[:, 1:])
    torch.testing.assert_close(undone, plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(neutral, plain)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5*fromal", r"Sign 5 of .*Did you mean 'formal'"),
        ("formal verbose", r"Sign 8 .* is 'v': expected \+, -, @positions, at L12 or when"),
        ("0.5 formal", r"Sign 5 .* is 'f': expected \* and a name"),
        ("formal - - verbose", r"Sign 10 .* is '-': expected a name or a number"),
        ("formal $", r"Sign 8 .* is '\$'"),
        ("formal @generatd", r"Sign 8 of .*generat"),
        ("dim @last", r"Sign 5 .*LayerScale of 'dim' acts at no positions"),
        ("formal @last @last", r"Sign 14 .*expected \+, -, at L12 or when"),
        ("dim at L1", r"Sign 5 .*LayerScale of 'dim' acts at no layer"),
        ("formal at L2-L1", r"Sign 8 .*holds no layer"),
        ("formal at twelve", r"Sign 8 .* is 'a': expected .*at L12"),
        ("ablate dim", r"Sign 1 .*adds no direction"),
        ("formal - ablate verbose", r"Sign 10 .*write \+"),
        ("formal when formal", r"Sign 13 .*'formal' has no gate"),
        ("formal when anmals", r"Sign 13 .*Did you mean 'animals'"),
        ("dim when animals", r"Sign 10 .*takes no gate"),
        ("ablate", "ends too early: expected a name"),
        ("0.5*", "ends too early: expected a name"),
        ("", "ends too early: expected a name or a number"),
    ],
)
def test_errors_name_the_place(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        iv.recipe_from_text(text, BOOK)
