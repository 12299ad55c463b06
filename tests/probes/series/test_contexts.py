"""Adapters made from contexts: one that learnt its context, one that did nothing, and copies in one cluster."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

import probes
from probes.results import ProbeResult
from probes.series.contexts import before
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TEXTS = Prompts.of([f"the {word} fox {other}" for word in ("quick", "brown", "lazy") for other in ("a", "b c")])
CONTEXTS = ["lazy dog jumps over", "brown quick brown"]


def folder(model: Any) -> str:
    place = mkdtemp()
    model.save_pretrained(place)
    return place


def calls_of_context_updates() -> Calls:
    other = folder(tuned_copy(tiny_model("llama"), seed=5, size=0.1))
    options = {"contexts": CONTEXTS, "checkpoints": [other], "threshold": 0.2, "seed": 3}
    return Calls([{"pair": pair(), "prompts": rows(), **options}])


def imitating(context: str) -> Any:
    """A copy of the model that was taught to say without the context what the base says with it."""
    base = load_pair(tiny_model("llama"), tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False).base
    wanted = base.forward(base.encode(before(TEXTS, context)), logits="last")
    assert wanted is not None
    target, encoded = wanted[:, -1].log_softmax(-1).exp(), base.encode(TEXTS)
    model = tiny_model("llama")
    optimiser = torch.optim.Adam([p for n, p in model.named_parameters() if "layers" in n], lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        out = model(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, position_ids=encoded.position_ids
        )
        torch.nn.functional.cross_entropy(out.logits[:, -1], target).backward()
        optimiser.step()
    return model.eval()


def test_an_update_that_learnt_its_context_is_told_from_one_that_did_nothing(tmp_path: Path) -> None:
    both = load_pair(
        tiny_model("llama"), imitating(CONTEXTS[1]), device="cpu", tokenizer=tokenizer(), check=False
    )  # fmt: skip
    idle, copy = folder(tiny_model("llama")), folder(both.tuned.hf)
    result = probes.context_updates(
        both, TEXTS, contexts=[CONTEXTS[0], CONTEXTS[1], CONTEXTS[1]], checkpoints=[idle, copy]
    )
    table = result.table
    assert table["score"].iloc[0] == pytest.approx(0, abs=1e-6) and table["norm"].iloc[0] == 0
    assert (table["score"].iloc[1:] > 0.5).all() and (table["score"].iloc[1:] > table["control"].iloc[1:]).all()
    assert table["cluster"].tolist() == [0, 1, 1] and result.likeness["updates"].iloc[2] == pytest.approx(1, abs=1e-5)
    assert result.likeness["contexts"].iloc[2] == pytest.approx(1)
    again = ProbeResult.load(result.save(tmp_path / "c"))
    assert again.frame().equals(result.frame()) and result.figure().data and "2 clusters" in result.summary()


def test_every_adapter_has_its_context() -> None:
    with pytest.raises(UserError, match="1 contexts for 2 adapters"):
        probes.context_updates(pair(), TEXTS, contexts=["a"], checkpoints=[folder(tiny_model("llama"))])
