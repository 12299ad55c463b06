"""Routers over two trained adapters: algebra with known answers, switch points, closing, and an even router as null."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
import probes
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

WORDS = {"foxes": (" the {} fox", " fox"), "dogs": (" lazy {} over", " dog")}


def model() -> AdaptedModel:
    return AdaptedModel(tiny_model("llama"), tokenizer(), name="tiny")


def domain_rows(n: int = 8) -> list[dict[str, str]]:
    return [
        {"prompt": text.format(letter), "answer": answer, "label": name, "group": f"{name} {letter}"}
        for letter in "abcdefghijkl"[:n] for name, (text, answer) in WORDS.items()
    ]  # fmt: skip


@cache
def adapters() -> list[str]:
    """Two LoRAs, each trained to write its domain's word."""
    root, found = Path(mkdtemp()), []
    for name in WORDS:
        torch.manual_seed(0)
        hf = get_peft_model(tiny_model("llama"), LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj", "down_proj"]))
        rows = [row for row in domain_rows(12) if row["label"] == name]
        ids = torch.tensor([tokenizer()(row["prompt"])["input_ids"] for row in rows])
        wanted = torch.tensor([tokenizer()(row["answer"], add_special_tokens=False)["input_ids"][0] for row in rows])
        optimiser = torch.optim.Adam([p for p in hf.parameters() if p.requires_grad], lr=0.02)
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(hf(ids).logits[:, -1], wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert float(loss.detach()) < 0.5
        hf.save_pretrained(root / name)
        found.append(str(root / name))
    return found


def calls_of_routing_map() -> Calls:
    given = {"rule": "meteora", "top_k": 1, "steps": 3, "lr": 0.02, "batch_size": 3, "seed": 3}
    return Calls([{"model": model(), "prompts": Prompts.of(domain_rows()), "adapters": adapters(), **given}])


def logits(recipe: iv.Recipe, on: AdaptedModel) -> torch.Tensor:
    with recipe.applied(on):
        found = on.forward(token_batch(2, 9, seed=3))
    assert found is not None
    return found


def bank() -> dict[str, Any]:
    return iv.lora_bank(adapters(), model())


@pytest.mark.parametrize("rule", ["phatgoose", "meteora", "smora", "mhr", "soft", "even"])
def test_one_adapter_forced_is_that_adapter(rule: str) -> None:
    on, held = model(), bank()
    count = 4 if rule == "smora" else 2
    gates = {
        path: torch.randn(4 if rule == "mhr" else count, 2 if rule == "mhr" else down.shape[2])
        for path, down in held["down"].items()
    }
    router = iv.AdapterRouting(**held, gates=gates, rule=rule, top_k=2)  # type: ignore[arg-type]
    for name, folder in zip(held["names"], adapters(), strict=True):
        tuned = load_pair(tiny_model("llama"), folder, tokenizer=tokenizer(), check=False).tuned
        forced = logits(iv.Recipe([router.with_forced(name)]), on)
        torch.testing.assert_close(forced, logits(iv.Recipe([]), tuned), atol=1e-4, rtol=1e-4)
    if rule == "smora":  # closing leaves the other ranks their own weights
        return
    other = next(name for name in held["names"] if name != held["names"][0])
    closed = logits(iv.Recipe([router.with_closed(other)]), on)
    torch.testing.assert_close(closed, logits(iv.Recipe([router.with_forced(held["names"][0])]), on))


def test_order_does_not_matter_and_even_is_the_mean() -> None:
    on, held = model(), bank()
    gates = {path: torch.randn(2, down.shape[2]) for path, down in held["down"].items()}
    turned = {
        "names": held["names"][::-1],
        **{side: {path: one.flip(0) for path, one in held[side].items()} for side in ("down", "up")},
    }
    flipped = {path: gate.flip(0) for path, gate in gates.items()}
    one = logits(iv.Recipe([iv.AdapterRouting(**held, gates=gates, rule="phatgoose")]), on)
    two = logits(iv.Recipe([iv.AdapterRouting(**turned, gates=flipped, rule="phatgoose")]), on)
    torch.testing.assert_close(one, two)
    path = next(iter(held["down"]))
    x = torch.randn(3, held["down"][path].shape[2])
    even = iv.AdapterRouting(**held)
    mean = sum(even.with_forced(name).change(path, x) for name in held["names"]) / 2
    torch.testing.assert_close(even.change(path, x), mean)
    whole = iv.AdapterRouting(**held, gates={p: torch.zeros(4, d.shape[2]) for p, d in held["down"].items()},
                              rule="smora", top_k=4)  # fmt: skip
    torch.testing.assert_close(whole.change(path, x), 2 * mean)


@pytest.mark.parametrize("rule", ["phatgoose", "meteora"])
def test_a_trained_router_sends_tokens_to_their_adapter(rule: str) -> None:
    found = probes.routing_map(
        model(), domain_rows(12), adapters(), rule=rule, top_k=1 if rule == "meteora" else 2, steps=40, lr=0.05  # type: ignore[arg-type]
    )  # fmt: skip
    lines = found.routers.set_index("router")
    assert lines.loc["own", "score"] > lines.loc["none", "score"] and lines.loc["oracle", "regret"] == 0
    assert (lines.loc[["routed", "even", "random", "own", "none"], "regret"] >= -1.5).all()
    assert lines.loc["routed", "score"] > lines.loc["none", "score"]
    if rule == "meteora":
        own = found.table[found.table["adapter"] == found.table["domain"]]
        assert own["score"].mean() > 0.7 > own["control"].mean()
        assert found.composite["share"].mean() > 0.6 and lines.loc["routed", "regret"] < lines.loc["random", "regret"]
    assert len(found.composite) and found.figure().data and "composite" in found.summary()


def test_multi_head_routing_learns_a_task_without_new_factors() -> None:
    found = probes.routing_map(model(), domain_rows(12), adapters(), rule="mhr", steps=40, lr=0.1)
    own = found.table[found.table["adapter"] == found.table["domain"]]
    assert own["score"].mean() > 0.6 and found.routers.set_index("router").loc["routed", "score"] > -2


def test_an_even_router_routes_nothing_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    found = probes.routing_map(model(), domain_rows(), adapters(), rule="even")
    assert (found.table["score"] == 0.5).all() and (found.table["q"] == 1).all()
    with pytest.raises(UserError, match="labelled by the name of their adapter"):
        probes.routing_map(model(), [{**row, "label": "cats"} for row in domain_rows()], adapters())
    with pytest.raises(UserError, match="holds no saved adapter"):
        iv.lora_bank([tmp_path / "a", tmp_path / "b"], model())
    wide = AdaptedModel(tiny_model("llama", intermediate_size=128), tokenizer(), name="wide")
    with pytest.raises(UserError, match="made for another base"):
        iv.Recipe([iv.AdapterRouting(**bank())]).check(wide)
