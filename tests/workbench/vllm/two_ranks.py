"""``python -m tests.workbench.vllm.two_ranks BASE ADAPTER tensor``: what the pair computes in two processes.

``tensor``: each holds a part of every layer; ``pipeline``: layers 0 and 1, and layer 2; ``tensor pipeline``: in four.
Beside it, what one process computes.

A process of its own: the checks of shapes that tests put on every function keep hooks from being sent to another.
"""

from __future__ import annotations

import sys

import torch

import interventions as iv
import workbench as wb
from interventions.vllm_texts import vllm_ids
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts
from workbench.vllm.route import ROUTE, route_of
from workbench.vllm.running import VllmEngine

TEXTS = Prompts.of(
    ["the quick brown fox", "jumps over", "the lazy dog and the fox jumps", "a", "over the lazy fox"], chat=False
)


def vector(seed: int) -> torch.Tensor:
    """A direction [d_model] that changes texts."""
    return 4 * torch.randn(64, generator=torch.Generator().manual_seed(seed))


def rows(pair: ModelPair) -> None:
    """Recorded rows are those of Hugging Face."""
    sites = ["resid_post", "attn_out", "mlp_out"]
    here = wb.record(pair, TEXTS, sites, positions="all")
    there = wb.record(pair, TEXTS, sites, positions="all", executor="vllm")
    for role in ("base", "tuned"):
        for site in here.sites:
            ours, theirs = (torch.as_tensor(one[role][site]) for one in (here, there))
            assert float((ours - theirs).norm() / ours.norm()) < 1e-5, (role, site)


def steered_texts(pair: ModelPair, engine: VllmEngine) -> None:
    """Every request has its own recipe, on every rank."""
    gate = iv.Gate(0, vector(5), 0.0, reach="onward")
    recipes = [
        iv.Recipe([iv.Offset(1, vector(1), positions="last+generated")]),
        None,
        iv.Recipe([iv.Offset(1, vector(2), when=gate)]),
        iv.Recipe([iv.SubspaceKnob(0, vector(3), 3.0), iv.Offset(2, vector(4), site="attn_out")]) * 0.5,
        iv.Recipe([iv.Offset(2, vector(6), when=gate), iv.Offset(0, vector(7), site="mlp_out")]),
    ]
    for side in (pair.base, pair.tuned):
        found = vllm_ids(engine, side, TEXTS, recipes, max_tokens=8)
        plain = vllm_ids(engine, side, TEXTS, [None] * len(TEXTS), max_tokens=8)
        assert [ids != bare for ids, bare in zip(found, plain, strict=True)] == [
            recipe is not None for recipe in recipes
        ]
        for row, one in enumerate(recipes):
            with (one or iv.Recipe()).applied(side):
                batch = side.encode(Prompts([TEXTS[row]]))
                single = side.generate_ids(batch, max_new_tokens=8)[0, batch.input_ids.shape[1] :].tolist()
            assert found[row] == single, (side.role, row)
    for recipe in (recipes[0], recipes[-1]):
        certificate = iv.certify(pair.tuned, recipe, "vllm", TEXTS, max_new_tokens=4)
        assert certificate.holds and certificate.equal_tokens == 1, certificate.summary()


def a_refusal(pair: ModelPair, engine: VllmEngine) -> None:
    """What a hook refuses in the last layer reaches this process, and the next call is made."""

    def refuses(_value: torch.Tensor, _ctx: ForwardContext) -> None:
        raise NotSupported("Not here.")

    hooks = {0: [SiteHook(Site("resid_post", 2), refuses, edit=True)]}
    try:
        engine.run("base", [[5, 6]], pair.base, hooks, max_tokens=2)
    except NotSupported as error:
        assert str(error) == "Not here."
    else:
        raise AssertionError("nothing was raised")
    assert len(engine.run("base", [[5, 6]], pair.base, max_tokens=2)[0]) == 2


def sampled_texts(pair: ModelPair) -> None:
    """Noise and metrics are those of this process."""
    found = []
    for route in (ROUTE.get(), None):
        token = ROUTE.set(route)
        found.append(wb.behaviour_diff(pair, TEXTS, metrics=["length"], samples=2, max_new_tokens=5, texts=True).texts)
        ROUTE.reset(token)
    assert found[0].equals(found[1]) and found[0]["text"].nunique() > 8


def main() -> None:
    """Raise where anything differs; print what was compared."""
    pair = wb.load_pair(sys.argv[1], sys.argv[2], dtype="float32")
    split = {f"{name}_parallel_size": 2 for name in sys.argv[3:]}
    with wb.on_vllm(pair, max_model_len=128, max_num_seqs=8, **split):
        route = route_of(pair.tuned)
        assert route is not None
        rows(pair)
        steered_texts(pair, route.engine)
        sampled_texts(pair)
        if "pipeline" in sys.argv[3:]:
            a_refusal(pair, route.engine)
    sys.stdout.write("rows, steered texts and sampled texts are equal\n")


if __name__ == "__main__":
    main()
