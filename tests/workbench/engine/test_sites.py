"""Names of sites, layers given as fractions, and errors that name the closest match."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_model, tokenizer
from workbench.engine.sites import KINDS, Site, expand_sites, parse_label, resolve_layers
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel


@pytest.mark.parametrize("kind", KINDS)
def test_names_round_trip(kind: str) -> None:
    site = Site(kind, 3, 7 if kind == "expert" else None)
    assert Site.parse(site.name) == site


@pytest.mark.parametrize(
    ("text", "kind"), [("z", "z"), ("hook_z", "z"), ("hook_resid_post", "resid_post"), ("router", "router")]
)
def test_short_names(text: str, kind: str) -> None:
    assert Site.parse(text) == Site(kind)


def test_unknown_names_say_the_closest() -> None:
    with pytest.raises(UserError, match="Did you mean 'resid_post'"):
        Site.parse("resid_pots")
    with pytest.raises(UserError, match=r"Did you mean 'blocks\.2\.attn\.hook_z'"):
        Site.parse("blocks.2.attn.hok_z")


def test_layers() -> None:
    assert resolve_layers(None, 3) == [0, 1, 2]
    assert resolve_layers([0.5, -1, "0"], 5) == [0, 2, 4]
    assert resolve_layers("0.5", 9) == [4]
    for bad in (5, -6, 1.2, "deep"):
        with pytest.raises(UserError):
            resolve_layers(bad, 5)


def test_labels() -> None:
    assert parse_label("L3H5") == (3, "head", 5)
    assert parse_label("L3E12") == (3, "expert", 12)
    assert parse_label("L3") == (3, None, None)
    with pytest.raises(UserError, match="L3H5"):
        parse_label("3.5")


def test_expansion_is_in_the_order_of_computation() -> None:
    model = AdaptedModel(tiny_model("qwen3moe"), tokenizer())
    names = [site.name for site in model.expand(["resid_post", "z", "blocks.0.mlp.expert[3]"], layers=[0, 1])]
    assert names == [
        "blocks.0.attn.hook_z", "blocks.0.mlp.expert[3]", "blocks.0.hook_resid_post",
        "blocks.1.attn.hook_z", "blocks.1.hook_resid_post",
    ]  # fmt: skip


def test_sites_a_model_lacks_are_refused() -> None:
    dense = AdaptedModel(tiny_model("llama"), tokenizer())
    with pytest.raises(UserError, match="Unknown site of this model"):
        dense.expand("router")
    with pytest.raises(UserError, match="Unknown site of this model"):
        dense.expand("blocks.9.attn.hook_z")
    with pytest.raises(UserError, match="No site was asked for"):
        expand_sites([], None, 3, dense.sites())
